"""Check a scoring output against its run, plan and manifest, to the byte and to the row."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xmodal_dist import storage
from xmodal_dist.dataset.verify import VerifyResult
from xmodal_dist.errors import VerificationError, XmodalError
from xmodal_dist.score import ledger
from xmodal_dist.score.formats import Part, PartEntry, ScoreManifest
from xmodal_dist.score.source import Unit

__all__ = ["verify_scoring"]


def verify_scoring(output: str) -> VerifyResult:
    """Whether every planned row is there once, scored or quarantined, and every file is what the manifest says.

    ``lost``: planned rows neither scored nor quarantined; ``duplicated``: rows accounted for more than once.

    Raises:
        UsageError: not a scoring output.
        VerificationError: its run or manifest cannot be read.
    """
    identity = ledger.load_identity(output)
    units = ledger.load_plan(output, identity)
    manifest = ledger.load_manifest(output)
    failed: list[str] = []
    if manifest is None:
        failed.append(
            f"{output} has no {ledger.MANIFEST_NAME}: the run is not finished; give its command again"
        )
    listed = {entry.path: entry for entry in manifest.parts} if manifest else {}
    lost = duplicated = 0
    for unit in units:
        rows = _check_unit(
            output, unit, identity.digest, listed.pop(ledger.part_path(unit.number), None), failed
        )
        known = np.unique(rows[(rows >= unit.start) & (rows < unit.stop)])
        lost += unit.rows - len(known)
        duplicated += len(rows) - len(known)
    failed += [f"{path} is in {ledger.MANIFEST_NAME}, but in no plan" for path in listed]
    strangers = ledger.committed_units(output) - {unit.number for unit in units}
    failed += [f"{ledger.part_path(number)} belongs to no unit of the plan" for number in sorted(strangers)]
    if manifest is not None:
        _check_totals(manifest, identity.rows, failed)
    return VerifyResult(lost=lost, duplicated=duplicated, failed_checks=failed)


def _check_unit(
    output: str, unit: Unit, spec: str, entry: PartEntry | None, failed: list[str]
) -> NDArray[np.int64]:
    """Check one unit's files; the input rows that they account for, in any order, repeated ones repeated."""
    path = ledger.part_path(unit.number)
    if not storage.exists(storage.join(output, path)):
        failed.append(f"{path} is missing: rows {unit.start} to {unit.stop} of {unit.path}")
        return np.zeros(0, dtype=np.int64)
    try:
        part = ledger.read_part(output, unit.number)
        with storage.open_read(storage.join(output, path)) as handle:
            table = pq.read_table(handle, page_checksum_verification=True)
    except (VerificationError, pa.ArrowException, OSError) as error:
        failed.append(f"{path} cannot be read: {error}")
        return np.zeros(0, dtype=np.int64)
    fault = ledger.footer_fault(part.footer, unit, spec)
    if fault:
        failed.append(f"{path} {fault}")
    if entry is not None and (entry.sha256, entry.bytes) != (part.sha256, part.bytes):
        failed.append(f"{path} is damaged: its SHA-256 or size is not the one in {ledger.MANIFEST_NAME}")
    if table.num_rows != part.footer.rows_ok:
        failed.append(f"{path} has {table.num_rows} rows, its footer says {part.footer.rows_ok}")
    rejected = _rejected_rows(output, part, failed) if part.footer.rows_bad else np.zeros(0, dtype=np.int64)
    if "row" in table.column_names:
        scored: NDArray[np.int64] = table.column("row").to_numpy()
    else:
        # Records go by their ids: scored are, in order, the rows of the unit that were not rejected.
        others = np.setdiff1d(np.arange(unit.start, unit.stop), rejected)
        surplus = np.full(max(0, table.num_rows - len(others)), unit.start)
        scored = np.concatenate([others[: table.num_rows], surplus])
    return np.concatenate([scored, rejected])


def _rejected_rows(output: str, part: Part, failed: list[str]) -> NDArray[np.int64]:
    """Check a part's quarantine file; the input rows in it."""
    name = part.footer.quarantine
    try:
        payload = storage.read_bytes(storage.join(output, name))
    except XmodalError:
        failed.append(f"{name} is missing: {part.footer.rows_bad} rejected records of {part.path}")
        return np.zeros(0, dtype=np.int64)
    if hashlib.sha256(payload).hexdigest() != part.footer.quarantine_sha256:
        failed.append(f"{name} is damaged: its SHA-256 is not the one in the footer of {part.path}")
        return np.zeros(0, dtype=np.int64)
    rows: NDArray[np.int64] = (
        pq.read_table(pa.BufferReader(payload), columns=["row"]).column("row").to_numpy()
    )
    if len(rows) != part.footer.rows_bad:
        failed.append(f"{name} has {len(rows)} rows, the footer of {part.path} says {part.footer.rows_bad}")
    return rows


def _check_totals(manifest: ScoreManifest, rows: int, failed: list[str]) -> None:
    if not rows == manifest.rows_in == manifest.rows_ok + manifest.rows_bad:
        failed.append(
            f"rows do not add up: {rows} planned, {manifest.rows_in} in, {manifest.rows_ok} scored, "
            f"{manifest.rows_bad} quarantined"
        )
    if sum(manifest.label_counts.values()) != manifest.rows_ok:
        failed.append(
            f"the label counts sum to {sum(manifest.label_counts.values())}, not {manifest.rows_ok}"
        )
