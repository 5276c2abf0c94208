"""Check a scoring output against its run, plan and manifest, to the byte and to the row."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_dist import storage
from xmodal_dist.dataset.verify import VerifyResult
from xmodal_dist.errors import VerificationError, XmodalError
from xmodal_dist.score import ledger
from xmodal_dist.score.formats import Part, PartEntry, ScoreManifest
from xmodal_dist.score.source import Unit

__all__ = ["verify_scoring"]


def verify_scoring(output: str) -> VerifyResult:
    """Whether every planned row is there once, scored or quarantined, and every file is what the manifest says.

    ``lost``: planned rows in no part; ``duplicated``: rows beyond the planned ones of their unit.

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
        part = _part(output, unit, failed)
        if part is None:
            lost += unit.rows
            continue
        _check_part(output, unit, part, identity.digest, listed.get(part.path), failed)
        found = part.footer.rows_ok + part.footer.rows_bad
        lost += max(0, unit.rows - found)
        duplicated += max(0, found - unit.rows)
    strangers = ledger.committed_units(output) - {unit.number for unit in units}
    failed += [f"{ledger.part_path(index)} belongs to no unit of the plan" for index in sorted(strangers)]
    if manifest is not None:
        _check_totals(manifest, identity.rows, failed)
    return VerifyResult(lost=lost, duplicated=duplicated, failed_checks=failed)


def _part(output: str, unit: Unit, failed: list[str]) -> Part | None:
    path = ledger.part_path(unit.number)
    if not storage.exists(storage.join(output, path)):
        failed.append(f"{path} is missing: rows {unit.start} to {unit.stop} of {unit.path}")
        return None
    try:
        return ledger.read_part(output, unit.number)
    except VerificationError as error:
        failed.append(str(error))
        return None


def _check_part(
    output: str, unit: Unit, part: Part, spec: str, entry: PartEntry | None, failed: list[str]
) -> None:
    """One part: its footer against the plan, its bytes against the manifest, its rows and its quarantine file."""
    fault = ledger.footer_fault(part.footer, unit, spec)
    if fault:
        failed.append(f"{part.path} {fault}")
    if entry is not None and (entry.sha256, entry.bytes) != (part.sha256, part.bytes):
        failed.append(f"{part.path} is damaged: its SHA-256 or size is not the one in {ledger.MANIFEST_NAME}")
    try:
        with storage.open_read(storage.join(output, part.path)) as handle:
            rows = pq.read_table(handle, page_checksum_verification=True, columns=["label"]).num_rows
        if rows != part.footer.rows_ok:
            failed.append(f"{part.path} has {rows} rows, its footer says {part.footer.rows_ok}")
    except (pa.ArrowException, OSError) as error:
        failed.append(f"{part.path} cannot be read: {error}")
    if part.footer.rows_bad:
        _check_quarantine(output, part, failed)


def _check_quarantine(output: str, part: Part, failed: list[str]) -> None:
    name = part.footer.quarantine
    try:
        payload = storage.read_bytes(storage.join(output, name))
    except XmodalError:
        failed.append(f"{name} is missing: {part.footer.rows_bad} rejected records of {part.path}")
        return
    if hashlib.sha256(payload).hexdigest() != part.footer.quarantine_sha256:
        failed.append(f"{name} is damaged: its SHA-256 is not the one in the footer of {part.path}")
        return
    rows = pq.read_metadata(pa.BufferReader(payload)).num_rows
    if rows != part.footer.rows_bad:
        failed.append(f"{name} has {rows} rows, the footer of {part.path} says {part.footer.rows_bad}")


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
