"""The account of a scoring run: parts checked against the plan and added up, each unit once."""

from __future__ import annotations

import hashlib
import io
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xmodal_dist.errors import VerificationError
from xmodal_dist.profile import ProfileCounts
from xmodal_dist.score.commit import part_path
from xmodal_dist.score.formats import CONFIDENCE_BINS, Footer, Part, PartFile
from xmodal_dist.score.plan import Plan, Unit

__all__ = ["FILES_ORDER", "FILES_SCHEMA", "Tally", "files_from_parquet", "files_to_parquet", "footer_fault"]

FILES_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("generation", pa.int32()),
        ("role", pa.string()),
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("rows", pa.int64()),
    ]
)
FILES_ORDER = [("unit", "ascending"), ("generation", "ascending"), ("path", "ascending")]
_FLUSH_FILES = 4096


class Tally:
    """Sums over committed parts, in any order; some hundred bytes a unit.

    Args:
        plan: of the run.
        spec: digest of the run's identity.
        generation: whose parts these are.
        expected: [U] rows that each unit has in this generation; 0 where it takes no part. None: those of the plan.
    """

    def __init__(
        self, plan: Plan, spec: str, generation: int = 1, expected: NDArray[np.int64] | None = None
    ) -> None:
        self._plan, self._spec, self._generation = plan, spec, generation
        self.expected = plan.unit_rows if expected is None else expected
        self.done = self.expected == 0
        self.rows_in = self.rows_ok = self.rows_bad = 0
        self.labels = Counter[str]()
        self.confidence = np.zeros(CONFIDENCE_BINS, dtype=np.int64)
        self.present = Counter[str]()
        self.reasons = Counter[str]()
        self.bad_by_file = np.zeros(len(plan.paths), dtype=np.int64)
        self.rows_by_file = np.bincount(plan.file, weights=plan.unit_rows, minlength=len(plan.paths))
        self.profile = ProfileCounts()
        self._files: list[tuple[int, int, str, str, str, int, int]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, part: Part) -> bool:
        """Take in a part; False if its unit is in already.

        Raises:
            VerificationError: it is not the part of its unit in this run.
        """
        footer = part.footer
        number = footer.unit
        if not 0 <= number < len(self._plan):
            raise VerificationError(f"{part.path} belongs to no unit of the plan; nothing was finished")
        fault = footer_fault(
            footer, self._plan.unit(number), self._spec, self._generation, int(self.expected[number])
        )
        if fault:
            raise VerificationError(f"{part.path} {fault}; nothing was finished")
        if self.done[number]:
            return False
        self.done[number] = True
        self.rows_in += footer.rows_in
        self.rows_ok += footer.rows_ok
        self.rows_bad += footer.rows_bad
        self.labels.update(footer.labels)
        self.confidence += np.array(footer.confidence, dtype=np.int64)
        self.present.update(footer.present)
        self.reasons.update(footer.reasons)
        self.bad_by_file[self._plan.file[number]] += footer.rows_bad
        self.profile += ProfileCounts.from_json(footer.profile)
        self._note(part)
        return True

    def missing(self) -> NDArray[np.int64]:
        """Numbers of the units without a part."""
        return np.flatnonzero(~self.done)

    def files_table(self) -> pa.Table:
        """The files of all parts, in input order; columns :data:`FILES_SCHEMA`."""
        self._flush()
        table = pa.Table.from_batches(self._batches, FILES_SCHEMA)
        return table.sort_by(FILES_ORDER)

    def require_whole(self) -> None:
        """Every unit has its part, and the rows add up.

        Raises:
            VerificationError: not so.
        """
        missing = self.missing()
        if len(missing):
            unit = self._plan.unit(int(missing[0]))
            raise VerificationError(
                f"{part_path(unit.number, self._generation)} is missing (rows {unit.start} to {unit.stop} of "
                f"{unit.path}), and {len(missing) - 1} more parts; nothing was finished"
            )
        planned = int(self.expected.sum())
        if not planned == self.rows_in == self.rows_ok + self.rows_bad:
            raise VerificationError(
                f"rows do not add up: {planned} planned, {self.rows_in} read, {self.rows_ok} scored, "
                f"{self.rows_bad} quarantined; nothing was finished"
            )

    def _note(self, part: Part) -> None:
        unit, generation = part.footer.unit, part.footer.generation

        def note(role: str, file: PartFile) -> None:
            self._files.append((unit, generation, role, file.path, file.sha256, file.bytes, file.rows))

        for file in part.files:
            note("data", file)
        if not part.path.endswith(".parquet"):
            note("commit", PartFile(path=part.path, sha256=part.sha256, bytes=part.bytes, rows=0))
        if part.footer.quarantine is not None:
            note("quarantine", part.footer.quarantine)
        if len(self._files) >= _FLUSH_FILES:
            self._flush()

    def _flush(self) -> None:
        if self._files:
            columns = [
                pa.array(column, field.type)
                for column, field in zip(zip(*self._files, strict=True), FILES_SCHEMA, strict=True)
            ]
            self._batches.append(pa.record_batch(columns, schema=FILES_SCHEMA))
            self._files.clear()


def footer_fault(footer: Footer, unit: Unit, spec: str, generation: int, rows: int) -> str:
    """What is wrong with a part's footer for a unit of ``rows`` rows in a generation, in words; "" if nothing."""
    if footer.spec != spec:
        return "belongs to another run"
    if footer.generation != generation:
        return f"is of generation {footer.generation}, not {generation}"
    found = (footer.unit, footer.source, footer.start, footer.stop)
    if found != (unit.number, unit.path, unit.start, unit.stop):
        return f"is of rows {footer.start} to {footer.stop} of {footer.source}, not of the planned ones"
    if not rows == footer.rows_in == footer.rows_ok + footer.rows_bad:
        counts = f"{rows} planned, {footer.rows_in} in, {footer.rows_ok} ok, {footer.rows_bad} bad"
        return f"rows do not add up: {counts}"
    return ""


def files_to_parquet(table: pa.Table) -> tuple[bytes, str]:
    """A files table as Parquet, and its SHA-256."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=["role"])
    payload = sink.getvalue()
    return payload, hashlib.sha256(payload).hexdigest()


def files_from_parquet(payload: bytes) -> pa.Table:
    """The files table of :func:`files_to_parquet`."""
    return pq.read_table(io.BytesIO(payload)).cast(FILES_SCHEMA)
