"""Reads tables: one or many CSV, JSON-lines or Parquet files. A row that cannot be read is rejected, not fatal.

Small values come into memory; columns of encoded bytes stay in their Parquet files until :func:`iterate_bytes`.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from xmodal_dist import storage
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.ingest.source import Source, relative_name

__all__ = ["find_tables", "iterate_bytes", "read_tables"]

_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_ROWS_PER_BATCH = 128
_SAMPLE_BYTE_VALUES = 64
_MAX_CELL_CHARACTERS = 1 << 30


class _Part(NamedTuple):
    """The rows of one text file: values by column, positions, and the rejected rows."""

    columns: dict[str, list[Any]]
    rows: list[int]
    rejected: list[Rejected]


def find_tables(source: str) -> list[str]:
    """The table files that a path, URI, glob or folder stands for, sorted; none for a folder without tables.

    Raises:
        UsageError: nothing is there, a file is no table, or a folder holds tables of several formats.
    """
    fs, inner = storage.filesystem(source)
    if fs.isfile(inner):
        found = [inner]
    elif fs.isdir(inner):
        found = [p for p in fs.find(inner, maxdepth=1) if _format_of(p)]
    else:
        found = [p for p in fs.glob(inner) if fs.isfile(p)] if _is_glob(source) else []
        if not found:
            raise UsageError(f"source {source!r} does not exist")
    strange = [p for p in found if not _format_of(p)]
    if strange:
        raise UsageError(f"{strange[0]!r} is no table: expected a file name ending in {', '.join(_FORMATS)}")
    formats = Counter(_format_of(p) for p in found)
    if len(formats) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(formats.items()))
        raise UsageError(f"{source!r} holds tables of several formats ({counts}); name one, as {found[0]!r}")
    return sorted(str(p) if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(p)) for p in found)


def read_tables(files: Sequence[str], root: str) -> Source:
    """Read table files of one format.

    Args:
        files: paths or URIs.
        root: folder, file or glob the source was named by; names of files are relative to it.

    Raises:
        DataError: a file is empty, or no table at all.
    """
    inside = all(path == root or path.startswith(root.rstrip("/") + "/") for path in files)
    base = root if inside else re.split(r"[*?\[]", root)[0].rpartition("/")[0]  # of a glob: what precedes it
    names = tuple(relative_name(path, base) for path in files)
    folders = tuple(path.rpartition("/")[0] or "/" for path in files)
    form = _format_of(files[0])
    if form == "parquet":
        return _read_parquet(files, names, folders)
    parts = [
        (_read_csv if form == "csv" else _read_jsonl)(storage.read_bytes(p), n)
        for p, n in zip(files, names, strict=True)
    ]
    names_of_columns = {name: None for part in parts for name in part.columns}
    columns = {
        name: [v for p in parts for v in p.columns.get(name, [None] * len(p.rows))]
        for name in names_of_columns
    }
    return Source(
        table=pa.table({name: _column(values) for name, values in columns.items()}),
        files=names,
        folders=folders,
        file_of=np.repeat(np.arange(len(parts)), [len(p.rows) for p in parts]).astype(np.int64),
        row_of=np.array([row for p in parts for row in p.rows], dtype=np.int64),
        typed=form != "csv",
        rejected=tuple(r for p in parts for r in p.rejected),
        lists={
            name: functools.partial(_no_empty_text, values)
            for name, values in columns.items()
            if any(isinstance(value, list) for value in values)
        },
    )


def iterate_bytes(source: Source, columns: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
    """Byte columns of a Parquet source in record order, at most 128 rows at a time."""
    for path in source.paths:
        with storage.open_read(path) as handle, pq.ParquetFile(handle) as file:
            present = [c for c in columns if c in file.schema_arrow.names]
            for batch in file.iter_batches(_ROWS_PER_BATCH, columns=present):
                nulls = pa.nulls(batch.num_rows, pa.binary())
                yield {c: _payload(batch.column(c), c) if c in present else nulls for c in columns}


def _is_glob(path: str) -> bool:
    return any(character in path for character in "*?[")


def _format_of(path: str) -> str:
    name = path.rpartition("/")[2].lower()
    return next((form for suffix, form in _FORMATS.items() if name.endswith(suffix)), "")


def _read_csv(payload: bytes, name: str) -> _Part:
    text = payload.decode("utf-8-sig", "surrogateescape")
    if not text.strip():
        raise DataError(f"{name} is empty: expected a line of column names, then one line for each record")
    lines = io.StringIO(text, newline="").readlines()
    delimiter = max(",;\t", key=next(line for line in lines if line.strip()).count)
    rows = _csv_rows(lines, delimiter)
    header = next(rows)
    if isinstance(header, str) or _is_not_utf8(header):
        reason = header if isinstance(header, str) else "it is not UTF-8; save the file as UTF-8"
        raise DataError(f"{name}: the line of column names cannot be read: {reason}")
    header = [cell.strip() or f"unnamed_{i}" for i, cell in enumerate(header)]
    _require_unique(header, name)
    part = _Part({column: [] for column in header}, [], [])
    for row, cells in enumerate(rows):
        if isinstance(cells, str):
            part.rejected.append(Rejected(name, row, "", "", "row_unreadable", cells))
        elif len(cells) != len(header):
            message = f"expected {len(header)} cells, as many as the header has, found {len(cells)}"
            part.rejected.append(Rejected(name, row, "", "", "row_unreadable", message))
        elif _is_not_utf8(cells):
            column = header[[_is_not_utf8([c]) for c in cells].index(True)]
            part.rejected.append(Rejected(name, row, "", column, "text_not_utf8", "save the file as UTF-8"))
        else:
            part.rows.append(row)
            for column, cell in zip(header, cells, strict=True):
                part.columns[column].append(cell)
    return part


def _require_unique(columns: Sequence[str], name: str) -> None:
    repeated = [column for column, count in Counter(columns).items() if count > 1]
    if repeated:
        raise DataError(f"{name} has two columns named {repeated[0]!r}; rename one")


def _csv_rows(lines: Sequence[str], delimiter: str) -> Iterator[list[str] | str]:
    """The cells of each row, or what is wrong with it; blank lines are no rows.

    Reading goes on with the line after the one where a bad row began: a quote that is not closed costs one line, not
    the records up to the next quote.
    """
    csv.field_size_limit(
        _MAX_CELL_CHARACTERS
    )  # process-wide; the default is too small for media within a cell
    at = 0
    while at < len(lines):
        reader = csv.reader((lines[i] for i in range(at, len(lines))), delimiter=delimiter, strict=True)
        begin = at
        try:
            for cells in reader:
                if cells:
                    yield cells
                begin = at + reader.line_num
            return
        except csv.Error as error:
            at = begin + 1
            yield f"line {begin + 1}: {'a quote is not closed' if 'end of data' in str(error) else error}"


def _is_not_utf8(cells: Sequence[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return True
    return False


def _read_jsonl(payload: bytes, name: str) -> _Part:
    lines = [line for line in payload.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    if not lines:
        raise DataError(f"{name} is empty: expected one JSON object a line")
    if lines[0].lstrip().startswith(b"["):
        raise DataError(f"{name} is a JSON array: expected one JSON object a line")
    records: list[dict[str, Any]] = []
    part = _Part({}, [], [])
    for row, line in enumerate(lines):
        try:
            record = json.loads(line.decode())
            if not isinstance(record, dict):
                raise ValueError(f"expected a JSON object, found {type(record).__name__}")
            if "\\u" in line.decode():
                json.dumps(record, ensure_ascii=False).encode()  # a lone surrogate is no text
        except UnicodeError:
            part.rejected.append(Rejected(name, row, "", "", "text_not_utf8", "save the file as UTF-8"))
        except (ValueError, RecursionError) as error:
            part.rejected.append(
                Rejected(name, row, "", "", "row_unreadable", f"not a JSON object: {error}"[:500])
            )
        else:
            records.append(record)
            part.rows.append(row)
    names = {column: None for record in records for column in record}
    part.columns.update({column: [record.get(column) for record in records] for column in names})
    return part


def _column(values: list[Any]) -> pa.Array:
    """Values of JSON types as one array: nested ones as JSON, numbers as numbers, mixed ones as text, "" as null."""
    values = [
        json.dumps(v, ensure_ascii=False, sort_keys=True) if isinstance(v, (dict, list)) else v
        for v in values
    ]
    values = _no_empty_text(values)
    kinds = {type(v) for v in values if v is not None}
    if not kinds:
        return pa.nulls(len(values), pa.string())
    if len(kinds) == 1 or kinds == {int, float}:
        try:
            return pa.array([float(v) if v is not None and float in kinds else v for v in values])
        except OverflowError:  # whole numbers beyond 64 bits
            pass
    return pa.array(
        [str(v).lower() if isinstance(v, bool) else None if v is None else str(v) for v in values]
    )


def _no_empty_text(values: list[Any]) -> list[Any]:
    return [None if v == "" else v for v in values]


def _read_parquet(files: Sequence[str], names: tuple[str, ...], folders: tuple[str, ...]) -> Source:
    tables, counts, notes, samples = [], list[int](), dict[str, None](), dict[str, list[pa.Array]]()
    lists: dict[str, None] = {}
    for path, name in zip(files, names, strict=True):
        try:
            with storage.open_read(path) as handle, pq.ParquetFile(handle) as file:
                _require_unique(file.schema_arrow.names, name)
                payloads = [f.name for f in file.schema_arrow if _holds_bytes(f.type)]
                usable = [f.name for f in file.schema_arrow if _holds_cells(f.type)]
                for f in file.schema_arrow:
                    if f.name not in payloads and f.name not in usable:
                        what = f"its type is {f.type}; store it as numbers, text or bytes"
                        notes[f"column {f.name!r} left out: {what}"] = None
                counts.append(file.metadata.num_rows)
                tables.append(_normalised(file.read(columns=usable)))
                lists |= {f.name: None for f in file.schema_arrow if _holds_lists(f.type)}
                for column in payloads:
                    samples.setdefault(column, []).append(_sample_bytes(file, column))
        except (pa.ArrowException, OSError) as error:
            what = f"has {storage.size_of(path)} bytes and cannot be read as Parquet"
            raise DataError(f"{name} {what}: {error}. Mend it or take it out of the source") from error
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"the Parquet files do not fit together: {error}") from error
    for column in samples.keys() & set(table.column_names):
        where = next(name for name, t in zip(names, tables, strict=True) if column in t.column_names)
        raise DataError(
            f"the Parquet files do not fit together: {where} has text or numbers in the column {column!r}, others bytes"
        )
    return Source(
        table=table,
        files=names,
        folders=folders,
        file_of=np.repeat(np.arange(len(files)), counts).astype(np.int64),
        row_of=np.concatenate([np.arange(count) for count in counts]).astype(np.int64),
        byte_columns={
            name: pa.concat_arrays([pa.array([], pa.binary()), *arrays]) for name, arrays in samples.items()
        },
        lists={name: functools.partial(_values, files, name) for name in lists},
        paths=tuple(files),
        notes=tuple(notes),
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    """True for binary columns and for structs of ``bytes`` and ``path``, as Hugging Face datasets store media."""
    if pa.types.is_struct(kind):
        return any(
            kind.field(i).name == "bytes" and _holds_bytes(kind.field(i).type) for i in range(kind.num_fields)
        )
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    )


def _holds_cells(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    is_time = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    return bool(is_number or is_time or pa.types.is_boolean(kind) or pa.types.is_null(kind) or _is_text(kind))


def _values(files: Sequence[str], column: str) -> list[Any]:
    """A column of some Parquet files as it is, None where a file lacks it."""
    found: list[Any] = []
    for path in files:
        with storage.open_read(path) as handle, pq.ParquetFile(handle) as file:
            there = column in file.schema_arrow.names
            rows = file.metadata.num_rows
            found += file.read(columns=[column])[column].to_pylist() if there else [None] * rows
    return _no_empty_text(found)


def _holds_lists(kind: pa.DataType) -> bool:
    """True for lists of cells."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and _holds_cells(kind.value_type))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _sample_bytes(file: pq.ParquetFile, column: str) -> pa.Array:
    """The first values of a byte column that are there."""
    for batch in file.iter_batches(_SAMPLE_BYTE_VALUES, columns=[column]):
        values = _payload(batch.column(0), column).drop_null()
        if len(values):
            return values
    return pa.array([], pa.binary())


def _payload(column: pa.Array, name: str) -> pa.Array:
    if not pa.types.is_struct(column.type):
        return column.cast(pa.binary())
    payloads = pc.struct_field(column, "bytes").cast(pa.binary())
    if column.type.get_field_index("path") >= 0:
        paths = pc.struct_field(column, "path")
        elsewhere = paths.filter(pc.and_(pc.is_null(payloads), pc.is_valid(paths)))
        if len(elsewhere):
            raise DataError(
                f"column {name!r} of bytes and path has the path {elsewhere[0].as_py()!r} without its bytes: "
                "store the bytes with it, or the path alone in a column of text"
            )
    return payloads


def _normalised(table: pa.Table) -> pa.Table:
    """Only numbers, booleans, times and text; empty text is null."""
    for index, column in enumerate(table.schema):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        values = table.column(index)
        if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
            values = values.cast(pa.float64())
        elif _is_text(kind) or pa.types.is_null(kind):
            values = values.cast(pa.string())
            values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
        elif pa.types.is_timestamp(kind):
            values = values.cast(pa.timestamp("us", kind.tz), safe=False)
        elif pa.types.is_dictionary(column.type):
            values = values.cast(kind)
        table = table.set_column(index, column.name, values)
    return table.replace_schema_metadata(None)
