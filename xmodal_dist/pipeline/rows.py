"""Rows of Parquet files as tables: only the row groups and columns that are asked for are read."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xmodal_dist import storage
from xmodal_dist.errors import DataError

__all__ = [
    "holds_bytes", "holds_text", "iter_row_groups", "one_chunk", "plain", "read_range", "read_row_groups",
    "read_rows",
]  # fmt: skip


def read_range(path: str, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
    """Rows [start, stop) of one file."""
    return read_rows(path, np.arange(start, stop, dtype=np.int64), columns)


def read_rows(path: str, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """The given rows of one file in the given order.

    Args:
        path: path or URI of a Parquet file.
        rows: positions in the file.
        columns: columns to read.

    Raises:
        DataError: the file is not readable as Parquet, or has fewer rows or other columns.
    """
    try:
        with storage.open_read(path) as handle, pq.ParquetFile(handle, pre_buffer=True) as file:
            _check_columns(path, file, columns)
            return _take(file, rows, list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def read_row_groups(path: str, groups: Sequence[int], columns: Sequence[str], version: str) -> list[pa.Table]:
    """Whole row groups of one file, one table each.

    Args:
        path: path or URI of a Parquet file.
        groups: ascending indices of row groups.
        columns: columns to read.
        version: names the content of the file, for example its checksum: footers of files that do not change are
            parsed once in a process.

    Raises:
        DataError: the file is not readable as Parquet, or has other columns.
    """
    try:
        metadata = _footer(path, version)
        with (
            storage.open_read(path) as handle,
            pq.ParquetFile(handle, metadata=metadata, pre_buffer=True) as file,
        ):
            _check_columns(path, file, columns)
            table = file.read_row_groups(list(groups), columns=list(columns), use_threads=False)
            counts = [metadata.row_group(group).num_rows for group in groups]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
    table = table.select(list(columns))
    return [table.slice(start, count) for start, count in zip(starts, counts, strict=False)]


def iter_row_groups(
    path: str, groups: Sequence[int], columns: Sequence[str], batch_rows: int
) -> Iterator[pa.Table]:
    """The rows of some row groups in order, at most ``batch_rows`` at a time; pages with a checksum are checked.

    Raises:
        pyarrow.ArrowException, OSError: the file cannot be read.
    """
    with (
        storage.open_read(path) as handle,
        pq.ParquetFile(
            handle, pre_buffer=not storage.is_local(path), page_checksum_verification=True
        ) as file,
    ):
        for batch in file.iter_batches(
            batch_rows, row_groups=list(groups), columns=list(columns), use_threads=False
        ):
            yield pa.Table.from_batches([batch]).select(list(columns))


def holds_text(kind: pa.DataType) -> bool:
    """True for a column of strings: media in it are paths or URIs."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def holds_bytes(kind: pa.DataType) -> bool:
    """True for a column of bytes: media in it are encoded values."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array, without copying where it is one already."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return column.combine_chunks() if column.num_chunks else pa.array([], column.type)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without dictionary encoding."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


@functools.lru_cache(maxsize=1024)
def _footer(path: str, version: str) -> pq.FileMetaData:
    with storage.open_read(path) as handle:
        return pq.read_metadata(handle)


def _check_columns(path: str, file: pq.ParquetFile, columns: Sequence[str]) -> None:
    absent = [c for c in columns if c not in file.schema_arrow.names]
    if absent:
        raise DataError(f"{path} lacks the column(s) {absent}; it has {file.schema_arrow.names}")


def _take(file: pq.ParquetFile, rows: NDArray[np.int64], columns: list[str]) -> pa.Table:
    counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if len(rows) and (rows.max() >= starts[-1] or rows.min() < 0):
        raise DataError(f"a row {int(rows.max())} was asked for, but the file has {int(starts[-1])} rows")
    groups = np.searchsorted(starts, rows, side="right") - 1
    needed = np.unique(groups)
    table = file.read_row_groups(needed.tolist(), columns=columns, use_threads=False)
    offsets = np.zeros(len(counts), dtype=np.int64)
    offsets[needed] = np.concatenate([[0], np.cumsum([counts[i] for i in needed])])[:-1]
    local = offsets[groups] + rows - starts[groups]
    if len(local) == table.num_rows and np.array_equal(local, np.arange(table.num_rows)):
        return table.select(columns)
    return cast(pa.Table, table.select(columns).take(pa.array(local)))
