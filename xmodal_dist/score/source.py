"""What a scoring run reads: the files it was given, cut into units whose content is pinned; and the rows of a unit.

Planning reads every footer and fails closed: a file that cannot be scored whole stops the run before it starts.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import MANIFEST_NAME, load_manifest
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.rows import holds_bytes, holds_text, iter_row_groups

__all__ = [
    "Need",
    "Plan",
    "Unit",
    "make_plan",
    "needs_of",
    "plan_from_parquet",
    "plan_to_parquet",
    "read_unit",
]

_FOOTER_READERS = 16
_PIN_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
_NAMED_COLUMNS = 20


class Need(NamedTuple):
    """A column that the run reads from every file.

    Attributes:
        column: its name in the files.
        use: what reads it, for messages.
        remedy: what to change where it is absent.
        holds: ``media`` if its values must be bytes, paths or URIs; ``names`` if they must be text or numbers.
        optional: True if all files may lack it; some may not.
    """

    column: str
    use: str
    remedy: str
    holds: Literal["media", "names", "anything"] = "anything"
    optional: bool = False


class Unit(NamedTuple):
    """Rows [start, stop) of one file: its row groups [group_start, group_stop).

    ``pin`` is the file's size and entity tag or modification time when it was planned.
    """

    number: int
    path: str
    pin: str
    group_start: int
    group_stop: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Rows of the unit."""
        return self.stop - self.start


class Plan(NamedTuple):
    """The units of a run in input order, and the columns of its first file.

    Attributes:
        units: every row of every file in exactly one of them.
        files: number of files.
        schema: columns of the first file; the others have the same ones among those that are read.
    """

    units: tuple[Unit, ...]
    files: int
    schema: pa.Schema

    @property
    def rows(self) -> int:
        """Rows of all units."""
        return sum(u.rows for u in self.units)

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the units and pins: equal for the same files with the same content."""
        lines = (f"{u.path}\t{u.pin}\t{u.start}\t{u.stop}\n" for u in self.units)
        digest = hashlib.sha256()
        for line in lines:
            digest.update(line.encode())
        return digest.hexdigest()


class _File(NamedTuple):
    path: str
    pin: str
    row_groups: tuple[tuple[int, int], ...]  # rows, bytes of the columns that are read
    schema: pa.Schema


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
    paths = [path for given in inputs for path in _expand(given, split)]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise UsageError(
            f"{twice[0]} is named twice by --input: its records would be scored twice; name it once"
        )
    with ThreadPoolExecutor(_FOOTER_READERS, thread_name_prefix="footer") as pool:
        files = list(pool.map(lambda path: _read_footer(path, needs), paths))
    _check_types(files, needs)
    units = tuple(_cut(files, unit_rows, unit_bytes))
    if not units:
        raise DataError(f"the input has no rows: {len(files)} empty tables in {', '.join(inputs)}")
    return Plan(units, len(files), files[0].schema)


def plan_to_parquet(plan: Plan) -> bytes:
    """The units as one Parquet file."""
    columns = map(list, zip(*plan.units, strict=True))
    table = pa.table(dict(zip(Unit._fields, columns, strict=True)))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def plan_from_parquet(payload: bytes) -> tuple[Unit, ...]:
    """The units of :func:`plan_to_parquet`."""
    return tuple(Unit(**row) for row in pq.read_table(io.BytesIO(payload)).to_pylist())


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
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    sizes = tuple((g.num_rows, sum(g.column(c).total_compressed_size for c in places)) for g in groups)
    return _File(path, pin, sizes, schema)


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
        else:
            continue
        raise UsageError(
            f"{path}: column {need.column!r} is {kind}, but {need.use} needs {expected}; {need.remedy}"
        )


def _check_types(files: Sequence[_File], needs: Sequence[Need]) -> None:
    first = files[0]
    for file in files[1:]:
        for need in needs:
            found, expected = (
                str(f.schema.field(need.column).type) if need.column in f.schema.names else "absent"
                for f in (file, first)
            )
            if found != expected:
                raise DataError(
                    f"{file.path}: column {need.column!r} is {found}, but {expected} in {first.path}; "
                    "score them in two runs, or write one of them again"
                )


def _cut(files: Sequence[_File], unit_rows: int, unit_bytes: int) -> Iterator[Unit]:
    index = 0
    for file in files:
        group_start = start = stop = size = 0
        for group, (rows, group_bytes) in enumerate(file.row_groups):
            stop, size = stop + rows, size + group_bytes
            full = stop - start >= unit_rows or size >= unit_bytes or group == len(file.row_groups) - 1
            if full and stop > start:
                yield Unit(index, file.path, file.pin, group_start, group + 1, start, stop)
                index, group_start, start, size = index + 1, group + 1, stop, 0


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
