"""What a scoring run reads: the files it was given, cut into units whose content is pinned; and the rows of a unit.

Planning reads every footer and fails closed: a file that cannot be scored whole stops the run before it starts.
"""

from __future__ import annotations

import difflib
import functools
import posixpath
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import MANIFEST_NAME, load_manifest
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.ahead import map_ahead
from xmodal_dist.pipeline.rows import holds_bytes, holds_text, iter_row_groups
from xmodal_dist.score.plan import Plan, Unit

__all__ = ["Need", "input_schema", "is_of_same_files", "make_plan", "needs_of", "read_unit"]

_FOOTER_READERS = 2
_REMOTE_FOOTER_READERS = 64
_PIN_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
_NAMED_COLUMNS = 20


class Need(NamedTuple):
    """A column that the run reads from every file.

    Attributes:
        column: its name in the files.
        use: what reads it, for messages.
        remedy: what to change where it is absent.
        holds: ``media`` if its values must be bytes, paths or URIs; ``names`` if they must be text or numbers;
            ``lists`` if they must be lists of text.
        optional: True if all files may lack it; some may not.
    """

    column: str
    use: str
    remedy: str
    holds: Literal["media", "names", "lists", "anything"] = "anything"
    optional: bool = False


class _File(NamedTuple):
    """A file's footer, as far as planning needs it.

    Attributes:
        pin: its size and tag.
        groups: [G, 2] rows and compressed bytes of the columns that are read, by row group.
        types: type of each column that is read, ``absent`` where it is not there.
    """

    pin: str
    groups: NDArray[np.int64]
    types: tuple[str, ...]


def needs_of(specs: Sequence[FieldSpec], columns: Mapping[str, str]) -> list[Need]:
    """The columns that a bundle's fields read; ``columns``: the bundle's column -> the input's, where they differ.

    Raises:
        UsageError: ``columns`` names a column that no field reads.
    """
    known = {c for s in specs for c in s.columns}
    for name in columns:
        if name not in known:
            raise UsageError(
                f"score.columns.{name}: no field of the bundle reads {name!r}; they read {_listed(known)}"
            )
    needs = []
    for spec in specs:
        for own in spec.columns:
            name = columns.get(own, own)
            holds: Literal["media", "anything"] = "media" if spec.modality.is_media else "anything"
            remedy = f"name the right one with --set score.columns.{own}=COLUMN"
            needs.append(Need(name, f"field {spec.name!r} of the bundle", remedy, holds))
    return needs


def make_plan(
    inputs: Sequence[str], split: str | None, needs: Sequence[Need], unit_rows: int, unit_bytes: int
) -> Plan:
    """Read every footer and cut the files into units of about ``unit_rows`` rows or ``unit_bytes`` bytes.

    Args:
        inputs: Parquet files, globs, folders of them, or packed datasets.
        split: which split of packed datasets; None takes all.
        needs: columns that every file must have, with the types of the first file.
        unit_rows: a unit ends with the row group that reaches it; a single larger row group is one unit.
        unit_bytes: likewise, for the compressed bytes of the columns that are read.

    Raises:
        UsageError: nothing there, a file given twice, a column absent.
        DataError: a file that is empty, truncated or unreadable, or that differs in a column's type; no rows at all.
    """
    paths = _paths(inputs, split)
    pins: list[str] = []
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise UsageError(
            f"{twice[0]} is named twice by --input: its records would be scored twice; name it once"
        )
    cuts = _Cuts(unit_rows, unit_bytes)
    expected: tuple[str, ...] | None = None
    threads = _FOOTER_READERS if storage.is_local(paths[0]) else _REMOTE_FOOTER_READERS
    with ThreadPoolExecutor(threads, thread_name_prefix="footer") as pool:
        read = functools.partial(_read_footer, needs=needs)
        for path, file in zip(paths, map_ahead(read, paths, pool, ahead=4 * threads), strict=True):
            expected = expected or file.types
            _check_types(path, file.types, paths[0], expected, needs)
            cuts.add(file.groups)
            pins.append(file.pin)
    plan = cuts.plan(paths, pins)
    if not len(plan):
        raise DataError(f"the input has no rows: {len(paths)} empty tables in {', '.join(inputs)}")
    return plan


def is_of_same_files(plan: Plan, inputs: Sequence[str], split: str | None) -> bool:
    """Whether a plan is of these inputs as they are now; reads no footer."""
    paths = _paths(inputs, split)
    if tuple(paths) != plan.paths:
        return False
    threads = _FOOTER_READERS if storage.is_local(paths[0]) else _REMOTE_FOOTER_READERS
    with ThreadPoolExecutor(threads, thread_name_prefix="pin") as pool:
        found = map_ahead(_pin, paths, pool, ahead=4 * threads)
        return all(pin == planned for (_, pin), planned in zip(found, plan.pins, strict=True))


class _Cuts:
    """Cuts files into units, one after the other."""

    def __init__(self, unit_rows: int, unit_bytes: int) -> None:
        self._unit_rows, self._unit_bytes = unit_rows, unit_bytes
        self._files = 0
        self._units = array("q")  # of each: file, first and last row group, first and last row

    def add(self, groups: NDArray[np.int64]) -> None:
        """Cut one file; a unit ends with the row group that reaches one of the limits."""
        group_start = start = stop = size = 0
        for group, (rows, group_bytes) in enumerate(groups.tolist()):
            stop, size = stop + rows, size + group_bytes
            full = stop - start >= self._unit_rows or size >= self._unit_bytes or group == len(groups) - 1
            if full and stop > start:
                self._units.extend((self._files, group_start, group + 1, start, stop))
                group_start, start, size = group + 1, stop, 0
        self._files += 1

    def plan(self, paths: Sequence[str], pins: Sequence[str]) -> Plan:
        """All units so far."""
        units = np.frombuffer(self._units, dtype=np.int64).reshape(-1, 5)
        return Plan(
            paths=tuple(paths),
            pins=tuple(pins),
            file=units[:, 0].astype(np.int32),
            groups=units[:, 1:3].astype(np.int32),
            rows=units[:, 3:5].copy(),
        )


def input_schema(plan: Plan) -> pa.Schema:
    """Columns of the first file; the others have the same ones among those that are read."""
    with storage.open_read(plan.paths[0]) as handle:
        return pq.read_schema(handle)


def read_unit(unit: Unit, columns: Sequence[str], batch_rows: int) -> Iterator[pa.Table]:
    """The rows of a unit in order, at most ``batch_rows`` at a time; memory does not grow with the unit.

    Raises:
        DataError: the file is damaged, or is not the one that was planned.
    """
    _check_pin(unit)
    rows = 0
    try:
        for table in iter_row_groups(
            unit.path, range(unit.group_start, unit.group_stop), columns, batch_rows
        ):
            rows += table.num_rows
            yield table
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{unit.path}: rows {unit.start} to {unit.stop} cannot be read: {error}") from error
    _check_pin(unit)
    if rows != unit.rows:
        raise DataError(f"{unit.path}: {rows} rows where {unit.rows} were planned from row {unit.start} on")


def _paths(inputs: Sequence[str], split: str | None) -> list[str]:
    return [path for given in inputs for path in _expand(given, split)]


def _expand(given: str, split: str | None) -> list[str]:
    path = storage.absolute(given)
    fs, inner = storage.filesystem(path)
    if any(c in inner for c in "*?[") and not fs.exists(inner):
        found = [str(p) for p in fs.glob(inner) if not fs.isdir(p)]
        paths = sorted(found if storage.is_local(path) else [str(fs.unstrip_protocol(p)) for p in found])
        what = "no file matches"
    elif storage.exists(storage.join(path, MANIFEST_NAME)):
        manifest = load_manifest(path)
        shards = manifest.shards if split is None else [shard for _, shard in manifest.split_shards(split)]
        return [storage.join(path, shard.path) for shard in shards]
    elif not fs.exists(inner):
        raise UsageError(f"input {given!r} does not exist")
    elif fs.isdir(inner):
        found = storage.list_files(path, ".parquet")
        paths = [p for p in found if not posixpath.basename(p).startswith(("_", "."))]
        what = "there is no file *.parquet below"
    else:
        paths, what = [path], ""
    if not paths:
        raise UsageError(f"{what} the input {given!r}")
    if split is not None:
        raise UsageError(
            f"input {given!r} is not a packed dataset, so it has no split {split!r}; leave --split out"
        )
    return paths


def _read_footer(path: str, needs: Sequence[Need]) -> _File:
    size, pin = _pin(path)
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes): its records are lost; write it again or leave it out")
    try:
        with storage.open_read(path) as handle, pq.ParquetFile(handle) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} ({size} bytes) cannot be read as Parquet, it may be truncated: {error}"
        ) from error
    _check_columns(path, schema, needs)
    used = {need.column for need in needs}
    places = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path.split(".")[0] in used]
    sizes = [
        (group.num_rows, sum(group.column(c).total_compressed_size for c in places))
        for group in map(metadata.row_group, range(metadata.num_row_groups))
    ]
    known = set(schema.names)
    types = tuple(str(schema.field(n.column).type) if n.column in known else "absent" for n in needs)
    return _File(pin, np.array(sizes, dtype=np.int64).reshape(-1, 2), types)


def _check_columns(path: str, schema: pa.Schema, needs: Sequence[Need]) -> None:
    for need in needs:
        if need.column not in schema.names:
            if need.optional:
                continue
            near = difflib.get_close_matches(need.column, schema.names, n=3, cutoff=0.4)
            hint = f"; nearest: {', '.join(map(repr, near))}" if near else ""
            raise UsageError(
                f"{path} has no column {need.column!r}, which {need.use} needs{hint}. "
                f"Its columns: {_listed(schema.names)}. To go on, {need.remedy}"
            )
        kind = schema.field(need.column).type
        if need.holds == "media" and not (holds_bytes(kind) or holds_text(kind)):
            expected = "bytes, paths or URIs"
        elif need.holds == "names" and (pa.types.is_nested(kind) or holds_bytes(kind)):
            expected = "text or numbers"
        elif need.holds == "lists" and not _holds_names(kind):
            expected = "lists of classes"
        else:
            continue
        raise UsageError(
            f"{path}: column {need.column!r} is {kind}, but {need.use} needs {expected}; {need.remedy}"
        )


def _holds_names(kind: pa.DataType) -> bool:
    return bool((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and holds_text(kind.value_type))


def _check_types(
    path: str, types: Sequence[str], first_path: str, expected: Sequence[str], needs: Sequence[Need]
) -> None:
    for need, found, wanted in zip(needs, types, expected, strict=True):
        if found != wanted:
            raise DataError(
                f"{path}: column {need.column!r} is {found}, but {wanted} in {first_path}; "
                "score them in two runs, or write one of them again"
            )


def _pin(path: str) -> tuple[int, str]:
    fs, inner = storage.filesystem(path)
    try:
        info = fs.info(inner)
    except FileNotFoundError as error:
        raise DataError(f"{path} is no longer there") from error
    tag = next((str(info[key]) for key in _PIN_KEYS if info.get(key)), "")
    return int(info["size"] or 0), f"{info['size']}/{tag}"


def _check_pin(unit: Unit) -> None:
    _, found = _pin(unit.path)
    if found != unit.pin:
        raise DataError(
            f"{unit.path} has changed since the run was planned (size/tag {unit.pin}, now {found}): "
            "its rows may be mixed. Score the new input into another --output"
        )


def _listed(names: Sequence[str] | set[str]) -> str:
    shown = sorted(names) if isinstance(names, set) else list(names)
    more = f" and {len(shown) - _NAMED_COLUMNS} more" if len(shown) > _NAMED_COLUMNS else ""
    return ", ".join(map(repr, shown[:_NAMED_COLUMNS])) + more
