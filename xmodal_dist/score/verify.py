"""Check a scoring output against its run, plan and manifest, to the byte and to the row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_dist import storage
from xmodal_dist.dataset.verify import VerifyResult
from xmodal_dist.errors import XmodalError
from xmodal_dist.pipeline.ahead import map_ahead
from xmodal_dist.score import ledger
from xmodal_dist.score.commit import DATA, part_path, read_part
from xmodal_dist.score.formats import Identity, Part, ScoreManifest
from xmodal_dist.score.ids import IdHash, id_list, row_ids
from xmodal_dist.score.outputs import LABELS
from xmodal_dist.score.plan import Plan, Unit
from xmodal_dist.score.source import read_unit
from xmodal_dist.score.tally import Tally, footer_fault

__all__ = ["verify_scoring"]

_THREADS = 4
_BATCH_ROWS = 65_536
_NAMED = 5


def verify_scoring(output: str, *, reread_input: bool = False) -> VerifyResult:
    """Whether every planned row is there once, scored or quarantined, and every file is what the manifest says.

    Of every unit the ids in its predictions and its quarantine must hash to what was read from the input, in whatever
    order. Where they do not, the input is read again to say which records are lost or doubled.

    Args:
        output: path or URI of the output.
        reread_input: hash the ids of the input again, instead of trusting what the workers read.

    Returns:
        ``lost``: planned rows neither scored nor quarantined; ``duplicated``: rows accounted for more than once.

    Raises:
        UsageError: not a scoring output.
        VerificationError: its run or manifest cannot be read.
    """
    return _Verification(output, reread_input).run()


class _Finding(NamedTuple):
    """What came out for one unit."""

    lost: int
    duplicated: int
    failed: list[str]


class _Verification:
    def __init__(self, output: str, reread_input: bool) -> None:
        self._output, self._reread = output, reread_input
        self._identity: Identity = ledger.load_identity(output)
        self._spec = self._identity.digest
        self._plan: Plan = ledger.load_plan(output, self._identity)
        self._id_column: str | None = self._identity.settings.get("id_column")
        self._partitioned = self._identity.settings.get("partition_by") is not None

    def run(self) -> VerifyResult:
        manifest = ledger.load_manifest(self._output)
        failed: list[str] = []
        if manifest is None:
            name = ledger.manifest_name(1)
            failed.append(f"{self._output} has no {name}: the run is not finished; give its command again")
            files = self._committed_files()
        else:
            files = ledger.load_files(self._output, manifest)
            failed += self._totals(manifest)
        failed += self._strangers(files)
        lost = duplicated = 0
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
            for found in map_ahead(self._check_unit, self._by_unit(files), pool, ahead=4 * _THREADS):
                lost, duplicated = lost + found.lost, duplicated + found.duplicated
                failed += found.failed
        return VerifyResult(lost=lost, duplicated=duplicated, failed_checks=failed)

    def _committed_files(self) -> pa.Table:
        """The files of a run that has no manifest yet."""
        tally = Tally(self._plan, self._spec)
        units = ledger.committed_units(self._output, 1, self._partitioned).tolist()
        for part in ledger.read_parts(self._output, units, 1, self._partitioned):
            tally.add(part)
        return tally.files_table()

    def _totals(self, manifest: ScoreManifest) -> list[str]:
        rows, failed = self._identity.rows, []
        if not rows == self._plan.num_rows == manifest.rows_in == manifest.rows_ok + manifest.rows_bad:
            failed.append(
                f"rows do not add up: {rows} planned, {manifest.rows_in} in, {manifest.rows_ok} scored, "
                f"{manifest.rows_bad} quarantined"
            )
        labels = sum(manifest.label_counts.values())
        several = any(column.name == LABELS for column in manifest.columns)
        if labels != manifest.rows_ok and not several:
            failed.append(f"the label counts sum to {labels}, not {manifest.rows_ok}")
        if (manifest.spec, manifest.bundle) != (self._spec, self._identity.bundle):
            failed.append(f"the manifest is of another run than {ledger.RUN_NAME}")
        return failed

    def _strangers(self, files: pa.Table) -> list[str]:
        """Files that readers of the folder would take for predictions."""
        known = set(files["path"].to_pylist())
        return [
            f"{path} does not belong to the run: `xmodal gc {self._output}` removes it"
            for path in ledger.list_folder(self._output, DATA)
            if path not in known and path.endswith(".parquet")
        ]

    def _by_unit(self, files: pa.Table) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Every unit of the plan with its files."""
        rows = (row for batch in files.to_batches(max_chunksize=4096) for row in batch.to_pylist())
        groups = groupby(rows, key=lambda row: row["unit"])
        number, found = 0, next(groups, None)
        while number < len(self._plan):
            if found is not None and found[0] == number:
                yield number, list(found[1])
                found = next(groups, None)
            else:
                yield number, []
            number += 1

    def _check_unit(self, work: tuple[int, list[dict[str, Any]]]) -> _Finding:
        """One unit's files against the plan and the manifest."""
        number, files = work
        unit, failed = self._plan.unit(number), list[str]()
        commit = part_path(number, 1, self._partitioned)
        ids: list[str] = []
        part: Part | None = None
        for file in files:
            ids += self._ids_of(file, failed)
            if file["path"] == commit:
                part = self._read_commit(commit, unit, failed)
        if not files:
            failed.append(f"{commit} is missing: rows {unit.start} to {unit.stop} of {unit.path}")
            return _Finding(unit.rows, 0, failed)
        found = IdHash()
        found.add(ids)
        expected = part.footer.ids if part is not None else None
        if self._reread:
            again = IdHash()
            again.add(self._input_ids(unit))
            if expected is not None and again.hexdigest() != expected:
                rows = f"rows {unit.start} to {unit.stop} of {unit.path}"
                failed.append(f"{commit}: the ids of {rows} are not those that were read")
            expected = again.hexdigest()
        if len(ids) == unit.rows and found.hexdigest() == expected:
            return _Finding(0, 0, failed)
        return self._difference(unit, ids, failed)

    def _read_commit(self, path: str, unit: Unit, failed: list[str]) -> Part | None:
        try:
            part = read_part(self._output, path)
        except XmodalError as error:
            failed.append(str(error))
            return None
        fault = footer_fault(part.footer, unit, self._spec, 1, unit.rows)
        if fault:
            failed.append(f"{path} {fault}")
        return part

    def _ids_of(self, file: dict[str, Any], failed: list[str]) -> list[str]:
        """Check a file's bytes; the ids in it, of predictions or rejected records."""
        path = file["path"]
        try:
            payload = storage.read_bytes(storage.join(self._output, path))
        except XmodalError:
            failed.append(f"{path} is missing: {file['rows']} rows")
            return []
        if (hashlib.sha256(payload).hexdigest(), len(payload)) != (file["sha256"], file["bytes"]):
            failed.append(f"{path} is damaged: its SHA-256 or size is not the one in the manifest")
        if file["role"] == "commit":
            return []
        try:
            table = pq.read_table(pa.BufferReader(payload), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            failed.append(f"{path} cannot be read: {error}")
            return []
        if table.num_rows != file["rows"]:
            failed.append(f"{path} has {table.num_rows} rows, the manifest says {file['rows']}")
        return _ids(table)

    def _difference(self, unit: Unit, ids: list[str], failed: list[str]) -> _Finding:
        """Which records are lost or doubled, by the input's ids; by their number where it cannot be read."""
        try:
            planned = Counter(self._input_ids(unit))
        except XmodalError as error:
            failed.append(f"rows {unit.start} to {unit.stop} of {unit.path} are not those scored: {error}")
            surplus = len(ids) - unit.rows
            return _Finding(max(0, -surplus), max(0, surplus), failed)
        there = Counter(ids)
        lost, more = planned - there, there - planned
        if lost or more:
            names = ", ".join(map(repr, sorted((lost + more).elements())[:_NAMED]))
            failed.append(
                f"rows {unit.start} to {unit.stop} of {unit.path}: {lost.total()} lost, {more.total()} too many, "
                f"among them {names}"
            )
        else:
            failed.append(
                f"{part_path(unit.number, 1, self._partitioned)}: its hash of ids is not that of its rows"
            )
        return _Finding(lost.total(), more.total(), failed)

    def _input_ids(self, unit: Unit) -> Iterator[str]:
        """Ids of the unit's rows in the input, as workers read them."""
        if self._id_column is None:
            yield from row_ids(unit.path, range(unit.start, unit.stop))
            return
        for table in read_unit(unit, [self._id_column], _BATCH_ROWS):
            yield from id_list(table.column(self._id_column))


def _ids(table: pa.Table) -> list[str]:
    """Ids of predictions or rejected records."""
    if "id" in table.column_names:
        return id_list(table.column("id"))
    return [
        name
        for source, row in zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True)
        for name in row_ids(source, [row])
    ]
