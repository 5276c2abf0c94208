"""The ledger of one scoring run: which run an output belongs to, which units are committed, and the manifest.

```
_run.json               created first: what run this is. Another run on the same output is refused
_plan-DIGEST.parquet    its units
data/ commits/ quarantine/   committed units: see ``commit.py``
_receipts/DRIVER-N.jsonl     parts as their drivers heard of them: saves reading the parts again
_attempts/part-00017/ATTEMPT    attempts at a unit that are under way, or died
_files-DIGEST.parquet   every file that counts, with its checksum
_manifest.json          created last: readers start here; _manifest-2.json after a retry, and so on
```

Nothing is ever replaced, so any number of drivers and workers may run on one output, and each may die at any point.
It knows no model and no Ray.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray
from pydantic import ValidationError

from xmodal_dist import lease, storage
from xmodal_dist.errors import SpecDiffersError, UsageError, VerificationError
from xmodal_dist.pipeline.ahead import map_ahead
from xmodal_dist.profile import ProfileCounts
from xmodal_dist.score.commit import COMMITS, DATA, part_path, read_part, unit_name
from xmodal_dist.score.formats import Column, Identity, Part, PartFile, ScoreManifest, to_json
from xmodal_dist.score.plan import Plan
from xmodal_dist.score.tally import FILES_ORDER, Tally, files_from_parquet, files_to_parquet
from xmodal_dist.settings import Settings

__all__ = [
    "ATTEMPTS",
    "PART_READERS",
    "RECEIPTS",
    "RUN_NAME",
    "begin_attempt",
    "committed_units",
    "end_attempt",
    "finalise",
    "known_plan",
    "list_folder",
    "load_files",
    "load_identity",
    "load_manifest",
    "load_plan",
    "manifest_name",
    "open_run",
    "read_parts",
    "read_predictions",
    "read_receipts",
    "write_receipts",
    "writing",
]

RUN_NAME = "_run.json"
_LEASE_NAME = "_lease.json"
RECEIPTS = "_receipts"
ATTEMPTS = "_attempts"
PART_READERS = 8
"""Threads of a driver that read parts of others."""

_S = TypeVar("_S", bound=Settings)
_NAMED_FILES = 5


def manifest_name(generation: int) -> str:
    """Name of the manifest of a generation."""
    return "_manifest.json" if generation == 1 else f"_manifest-{generation}.json"


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
        storage.create(_plan_path(output, identity), plan.to_parquet())
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


def writing(output: str) -> contextlib.AbstractContextManager[None]:
    """Share the output with other drivers where the store keeps them apart; else be the only one for the block.

    Raises:
        RunAgainError: another driver is at work on a store that cannot keep two apart.
    """
    if storage.exclusive_create_works(output):
        return contextlib.nullcontext()
    return lease.hold(storage.join(output, _LEASE_NAME))


def load_identity(output: str) -> Identity:
    """The run an output belongs to.

    Raises:
        UsageError: not a scoring output.
    """
    place = storage.join(output, RUN_NAME)
    if not storage.exists(place):
        raise UsageError(f"{output!r} is not the output of a scoring run: it has no {RUN_NAME}")
    return _parse(Identity, storage.read_text(place), place)


def known_plan(output: str) -> Plan | None:
    """The plan of the run that is in an output; None where there is none."""
    if not storage.exists(storage.join(output, RUN_NAME)):
        return None
    return load_plan(output, load_identity(output))


def load_plan(output: str, identity: Identity) -> Plan:
    """The plan of the run an output belongs to."""
    return Plan.from_parquet(storage.read_bytes(_plan_path(output, identity)))


def load_manifest(output: str) -> ScoreManifest | None:
    """The newest manifest of a finished run; None while it is not finished."""
    newest, generation = None, 1
    while storage.exists(place := storage.join(output, manifest_name(generation))):
        newest, generation = _parse(ScoreManifest, storage.read_text(place), place), generation + 1
    return newest


def load_files(output: str, manifest: ScoreManifest) -> pa.Table:
    """The files of a manifest; columns as in :data:`xmodal_dist.score.tally.FILES_SCHEMA`.

    Raises:
        VerificationError: the table is not the one that the manifest names.
    """
    place = storage.join(output, manifest.files.path)
    if storage.sha256_of(place) != manifest.files.sha256:
        raise VerificationError(f"{place} is damaged: its SHA-256 is not the one in the manifest")
    return files_from_parquet(storage.read_bytes(place))


def committed_units(output: str, generation: int = 1, partitioned: bool = False) -> NDArray[np.int64]:
    """Numbers of the units that are committed, in order, from one listing."""
    mark = f"-g{generation}" if generation > 1 else ""
    pattern = re.compile(rf"part-(\d{{5,}}){mark}\.(?:json|parquet)")
    names = (path.rsplit("/", 1)[-1] for path in list_folder(output, COMMITS if partitioned else DATA))
    found = (pattern.fullmatch(name) for name in names)
    return np.array(sorted(int(name[1]) for name in found if name), dtype=np.int64)


def read_parts(
    output: str, units: Sequence[int], generation: int = 1, partitioned: bool = False
) -> Iterator[Part]:
    """The committed parts of some units, in their order, read by threads."""
    with ThreadPoolExecutor(PART_READERS, thread_name_prefix="parts") as pool:
        yield from map_ahead(
            lambda unit: read_part(output, part_path(unit, generation, partitioned)),
            units,
            pool,
            ahead=4 * PART_READERS,
        )


def list_folder(output: str, folder: str) -> list[str]:
    """Paths in the output of the files below one of its folders, from one listing."""
    return [
        path[path.rindex(f"/{folder}/") + 1 :] for path in storage.list_files(storage.join(output, folder))
    ]


def write_receipts(output: str, driver: str, number: int, parts: Sequence[Part]) -> None:
    """Write down parts that a driver was told of, so that no one has to read them; ``number`` counts its calls."""
    lines = "".join(to_json(part, indent=None) + "\n" for part in parts)
    storage.create(storage.join(output, RECEIPTS, f"{driver}-{number:06d}.jsonl"), lines.encode())


def read_receipts(output: str) -> Iterator[Part]:
    """All parts that drivers were told of, some perhaps several times; those of the latest drivers first."""
    for path in reversed(storage.list_files(storage.join(output, RECEIPTS))):
        for line in storage.read_text(path).splitlines():
            yield _parse(Part, line, path)


def begin_attempt(output: str, unit: int, attempt: str, generation: int = 1) -> int:
    """Note that an attempt at a unit begins; how many are under way, or died without a word."""
    folder = f"{ATTEMPTS}/{unit_name(unit, generation)}"
    others = len(storage.list_files(storage.join(output, folder)))
    storage.create(storage.join(output, folder, attempt), b"")
    return others


def end_attempt(output: str, unit: int, attempt: str, generation: int = 1) -> None:
    """Note that an attempt came to an end, whichever; one that dies cannot."""
    storage.delete(storage.join(output, ATTEMPTS, unit_name(unit, generation), attempt))


def finalise(
    output: str,
    identity: Identity,
    tally: Tally,
    classes: Sequence[str],
    schema: pa.Schema,
    before: ScoreManifest | None = None,
) -> ScoreManifest:
    """Create the manifest over all parts; if another driver was first, its manifest stands.

    Args:
        output: the run's output.
        identity: the run.
        tally: of all parts of this generation.
        classes: class names by index.
        schema: columns of the predictions.
        before: the manifest of the generation before, whose rejected records these parts are of.

    Raises:
        VerificationError: a unit without its part, or rows that do not add up.
    """
    tally.require_whole()
    table = tally.files_table()
    labels = Counter({**dict.fromkeys(classes, 0), **tally.labels})
    present, confidence = Counter(tally.present), tally.confidence
    rows_ok, profile = tally.rows_ok, tally.profile
    if before is not None:
        old = load_files(output, before)
        table = pa.concat_tables([old.filter(pc.not_equal(old["role"], "quarantine")), table])
        table = table.sort_by(FILES_ORDER)
        labels.update(before.label_counts)
        present.update(before.present_counts)
        confidence = confidence + np.array(before.confidence_counts)
        rows_ok += before.rows_ok
        profile += ProfileCounts.from_json(before.profile)
    payload, sha256 = files_to_parquet(table)
    files = PartFile(
        path=f"_files-{sha256[:16]}.parquet", sha256=sha256, bytes=len(payload), rows=table.num_rows
    )
    storage.create(storage.join(output, files.path), payload)
    manifest = ScoreManifest(
        generation=1 if before is None else before.generation + 1,
        spec=identity.digest,
        bundle=identity.bundle,
        input=identity.input,
        classes=tuple(classes),
        rows_in=identity.rows,
        rows_ok=rows_ok,
        rows_bad=tally.rows_bad,
        label_counts=dict(labels),
        confidence_counts=tuple(confidence.tolist()),
        present_counts=dict(present),
        quarantine=dict(sorted(tally.reasons.items())),
        profile=profile.to_json(),
        columns=tuple(Column(name=f.name, type=str(f.type)) for f in schema),
        partition_by=identity.settings.get("partition_by"),
        files=files,
    )
    if manifest.rows_in != manifest.rows_ok + manifest.rows_bad:
        raise VerificationError(
            f"rows do not add up: {manifest.rows_in} planned, {manifest.rows_ok} scored, "
            f"{manifest.rows_bad} quarantined; nothing was finished"
        )
    place = storage.join(output, manifest_name(manifest.generation))
    if not storage.create(place, (to_json(manifest) + "\n").encode()):
        return _parse(ScoreManifest, storage.read_text(place), place)
    return manifest


def read_predictions(output: str) -> pa.Table:
    """All predictions of a finished run, in input order.

    Raises:
        UsageError: no finished run there.
    """
    manifest = load_manifest(output)
    if manifest is None:
        raise UsageError(
            f"{output!r} has no {manifest_name(1)}: the run is not finished; give the same command again"
        )
    files, by = load_files(output, manifest), manifest.partition_by
    fs, inner = storage.filesystem(output)
    paths = files.filter(pc.equal(files["role"], "data"))["path"].to_pylist()
    types = {column.name: column.type for column in manifest.columns}
    dataset = pads.dataset(
        [storage.join(inner, path) for path in paths],
        filesystem=fs,
        format="parquet",
        partitioning=pads.partitioning(pa.schema([(by, types[by])]), flavor="hive")
        if by is not None
        else None,
        partition_base_dir=inner,
    )
    return (
        dataset.to_table().select([column.name for column in manifest.columns]).replace_schema_metadata(None)
    )


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
    known = load_plan(output, old)
    before, after = (dict(zip(p.paths, p.pins, strict=True)) for p in (known, plan))
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
