"""The ledger of one scoring run: which run an output belongs to, which units are committed, and the manifest.

```
_run.json                        created first: what run this is. Another run on the same output is refused
_plan-DIGEST.parquet             its units
quarantine/part-00017-SHA.parquet   rejected records of unit 17, named by its content; created before the data
data/part-00017.parquet          created exclusively, whole: this is the commit of unit 17; its footer says what it is
_manifest.json                   created last: readers start here
```

Nothing is ever replaced, so any number of drivers and workers may run on one output, and each may die at any point.
It knows no model and no Ray.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from xmodal_dist import storage
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.quarantine import to_parquet as rejected_to_parquet
from xmodal_dist.errors import SpecDiffersError, UsageError, VerificationError
from xmodal_dist.score.formats import Column, Footer, Identity, Part, PartEntry, ScoreManifest, to_json
from xmodal_dist.score.source import Plan, Unit, plan_from_parquet, plan_to_parquet
from xmodal_dist.settings import Settings

__all__ = [
    "DATA",
    "MANIFEST_NAME",
    "QUARANTINE",
    "RUN_NAME",
    "commit",
    "committed_units",
    "finalise",
    "footer_fault",
    "load_identity",
    "load_manifest",
    "load_plan",
    "open_run",
    "part_path",
    "read_part",
    "read_parts",
    "read_predictions",
]

RUN_NAME = "_run.json"
MANIFEST_NAME = "_manifest.json"
DATA = "data"
QUARANTINE = "quarantine"
_S = TypeVar("_S", bound=Settings)

_FOOTER_KEY = b"xmodal"
_READERS = 8
_NAMED_FILES = 5


def open_run(output: str, identity: Identity, plan: Plan) -> bool:
    """Begin a run, or take up the same one: True if it is new.

    Raises:
        UsageError: the output holds something else.
        SpecDiffersError: the output belongs to another run; says what differs.
    """
    place = storage.join(output, RUN_NAME)
    if not storage.exists(place):
        _refuse_strangers(output)
        # Before _run.json, so that every run that exists has its plan.
        storage.create(_plan_path(output, identity), plan_to_parquet(plan))
        if storage.create(place, (to_json(identity) + "\n").encode()):
            return True
    found = load_identity(output)
    if found.digest != identity.digest:
        raise SpecDiffersError(
            f"{output!r} belongs to another run; what differs:\n  "
            + "\n  ".join(_differences(output, found, identity, plan))
            + "\nName another --output, or give the settings of that run to go on with it."
        )
    return False


def load_identity(output: str) -> Identity:
    """The run an output belongs to.

    Raises:
        UsageError: not a scoring output.
    """
    place = storage.join(output, RUN_NAME)
    if not storage.exists(place):
        raise UsageError(f"{output!r} is not the output of a scoring run: it has no {RUN_NAME}")
    return _parse(Identity, storage.read_text(place), place)


def load_plan(output: str, identity: Identity) -> tuple[Unit, ...]:
    """The units of the run an output belongs to."""
    return plan_from_parquet(storage.read_bytes(_plan_path(output, identity)))


def load_manifest(output: str) -> ScoreManifest | None:
    """The manifest of a finished run; None while it is not finished."""
    place = storage.join(output, MANIFEST_NAME)
    return _parse(ScoreManifest, storage.read_text(place), place) if storage.exists(place) else None


def part_path(unit: int) -> str:
    """Path of a unit's part in the output."""
    return f"{DATA}/part-{unit:05d}.parquet"


def committed_units(output: str) -> set[int]:
    """The units whose parts exist, from one listing."""
    names = (re.fullmatch(r"part-(\d{5,})\.parquet", path.rsplit("/", 1)[-1]) for path in _list_data(output))
    return {int(name[1]) for name in names if name}


def commit(output: str, footer: Footer, table: pa.Table, rejected: Sequence[Rejected]) -> Part:
    """Commit a unit: its rejected records, then its part. If another attempt was first, its part stands.

    Args:
        output: the run's output.
        footer: of this part, without the quarantine file.
        table: the predictions; the output's schema also where it has no rows.
        rejected: the other records of the unit.
    """
    assert footer.rows_in == table.num_rows + len(rejected) == footer.rows_ok + footer.rows_bad
    if rejected:
        payload = rejected_to_parquet(rejected)
        sha256 = hashlib.sha256(payload).hexdigest()
        # Named by content: attempts that reject the same records share the file.
        name = f"{QUARANTINE}/part-{footer.unit:05d}-{sha256[:12]}.parquet"
        storage.create(storage.join(output, name), payload)
        footer = footer.model_copy(update={"quarantine": name, "quarantine_sha256": sha256})
    sink = io.BytesIO()
    metadata = {_FOOTER_KEY: to_json(footer).encode()}
    pq.write_table(
        table.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True
    )
    payload = sink.getvalue()
    path = part_path(footer.unit)
    if not storage.create(storage.join(output, path), payload):
        return read_part(output, footer.unit)
    return Part(path=path, sha256=hashlib.sha256(payload).hexdigest(), bytes=len(payload), footer=footer)


def read_part(output: str, unit: int) -> Part:
    """Read a committed part and what its footer says.

    Raises:
        VerificationError: it is damaged, or is not a part of a scoring run.
    """
    place = storage.join(output, part_path(unit))
    payload = storage.read_bytes(place)
    try:
        text = (pq.read_schema(io.BytesIO(payload)).metadata or {})[_FOOTER_KEY].decode()
    except (pa.ArrowException, KeyError) as error:
        raise VerificationError(f"{place} is damaged or not a part of a scoring run: {error}") from error
    footer = _parse(Footer, text, place)
    return Part(
        path=part_path(unit), sha256=hashlib.sha256(payload).hexdigest(), bytes=len(payload), footer=footer
    )


def read_parts(output: str, units: Sequence[int]) -> list[Part]:
    """:func:`read_part` for many units, in threads."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="parts") as pool:
        return list(pool.map(lambda unit: read_part(output, unit), units))


def finalise(
    output: str,
    identity: Identity,
    plan: Plan,
    parts: Mapping[int, Part],
    classes: Sequence[str],
    schema: pa.Schema,
) -> ScoreManifest:
    """Check the parts against the plan and create the manifest.

    Raises:
        VerificationError: a unit without its part, rows that do not add up, or a part of another run.
    """
    spec = identity.digest
    footers = []
    for unit in plan.units:
        footer = parts[unit.number].footer if unit.number in parts else None
        wrong = "is missing" if footer is None else footer_fault(footer, unit, spec)
        if footer is None or wrong:
            raise VerificationError(
                f"{storage.join(output, part_path(unit.number))}: {wrong}; nothing was finished"
            )
        footers.append(footer)
    labels: Counter[str] = Counter(dict.fromkeys(classes, 0))
    reasons: Counter[str] = Counter()
    for footer in footers:
        labels.update(footer.labels)
        reasons.update(footer.reasons)
    manifest = ScoreManifest(
        spec=spec,
        bundle=identity.bundle,
        classes=tuple(classes),
        rows_in=sum(f.rows_in for f in footers),
        rows_ok=sum(f.rows_ok for f in footers),
        rows_bad=sum(f.rows_bad for f in footers),
        label_counts=dict(labels),
        confidence_counts=tuple(map(sum, zip(*(f.confidence for f in footers), strict=True))),
        quarantine=dict(sorted(reasons.items())),
        columns=tuple(Column(name=f.name, type=str(f.type)) for f in schema),
        parts=tuple(_entry(parts[unit.number]) for unit in plan.units),
    )
    if not identity.rows == manifest.rows_in == manifest.rows_ok + manifest.rows_bad:
        raise VerificationError(
            f"rows do not add up: {identity.rows} planned, {manifest.rows_in} read, {manifest.rows_ok} scored, "
            f"{manifest.rows_bad} quarantined; nothing was finished"
        )
    if not storage.create(storage.join(output, MANIFEST_NAME), (to_json(manifest) + "\n").encode()):
        return load_manifest(output) or manifest
    return manifest


def footer_fault(footer: Footer, unit: Unit, spec: str) -> str:
    """What is wrong with a part's footer for a unit, in words; "" if nothing."""
    if footer.spec != spec:
        return "belongs to another run"
    if (footer.unit, footer.source, footer.start, footer.stop) != (
        unit.number,
        unit.path,
        unit.start,
        unit.stop,
    ):
        return f"is of rows {footer.start} to {footer.stop} of {footer.source}, not of the planned ones"
    if not unit.rows == footer.rows_in == footer.rows_ok + footer.rows_bad:
        counts = f"{unit.rows} planned, {footer.rows_in} in, {footer.rows_ok} ok, {footer.rows_bad} bad"
        return f"rows do not add up: {counts}"
    return ""


def read_predictions(output: str) -> pa.Table:
    """All predictions of a finished run, in input order.

    Raises:
        UsageError: no finished run there.
    """
    manifest = load_manifest(output)
    if manifest is None:
        raise UsageError(
            f"{output!r} has no {MANIFEST_NAME}: the run is not finished; give the same command again"
        )
    tables = [
        pq.read_table(io.BytesIO(storage.read_bytes(storage.join(output, p.path)))) for p in manifest.parts
    ]
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])


def _entry(part: Part) -> PartEntry:
    footer = part.footer
    return PartEntry(
        path=part.path,
        sha256=part.sha256,
        bytes=part.bytes,
        rows=footer.rows_ok,
        rows_bad=footer.rows_bad,
        quarantine=footer.quarantine,
        quarantine_sha256=footer.quarantine_sha256,
    )


def _list_data(output: str) -> list[str]:
    fs, _ = storage.filesystem(output)
    fs.invalidate_cache()  # object stores remember listings, and other workers write
    folder = storage.join(output, DATA)
    return storage.list_files(folder) if storage.exists(folder) else []


def _refuse_strangers(output: str) -> None:
    if not storage.exists(output):
        return
    fs, inner = storage.filesystem(output)
    if not fs.isdir(inner):
        raise UsageError(f"--output {output!r} is a file; name a folder")
    names = sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(inner, detail=False))
    strangers = [n for n in names if not n.startswith(("_plan-", f"{RUN_NAME}."))]
    if strangers:
        raise UsageError(
            f"--output {output!r} already holds something else ({', '.join(strangers[:_NAMED_FILES])}); "
            "name a new or empty folder"
        )


def _plan_path(output: str, identity: Identity) -> str:
    return storage.join(output, f"_plan-{identity.input[:16]}.parquet")


def _differences(output: str, old: Identity, new: Identity, plan: Plan) -> list[str]:
    lines = []
    for name in ("bundle", "code", "files", "rows", "units"):
        if getattr(old, name) != getattr(new, name):
            lines.append(f"{name}: the run has {getattr(old, name)!r}, this command {getattr(new, name)!r}")
    for name in sorted({*old.settings, *new.settings}):
        if old.settings.get(name) != new.settings.get(name):
            lines.append(
                f"{name}: the run has {old.settings.get(name)!r}, this command {new.settings.get(name)!r}"
            )
    before = {u.path: u.pin for u in load_plan(output, old)}
    after = {u.path: u.pin for u in plan.units}
    changed = sorted(p for p in {*before, *after} if before.get(p) != after.get(p))
    for path in changed[:_NAMED_FILES]:
        what = (
            "new"
            if path not in before
            else "not among this command's"
            if path not in after
            else "changed since"
        )
        lines.append(f"input {path}: {what}")
    if len(changed) > _NAMED_FILES:
        lines.append(f"and {len(changed) - _NAMED_FILES} more input files")
    return lines


def _parse(kind: type[_S], text: str, place: str) -> _S:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise VerificationError(
            f"{place} is damaged or of another version: {error.errors()[0]['msg']}"
        ) from error
