"""Writes records as shards of one split: row groups and files of bounded bytes, each file placed whole.

Records are buffered for one row group and one shard; the same records always give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import MANIFEST_NAME, RowGroup, Shard
from xmodal_dist.dataset.quarantine import Rejected, to_parquet
from xmodal_dist.dataset.split import SPLITS
from xmodal_dist.errors import UsageError

__all__ = ["ShardLimits", "ShardWriter", "remove_dataset", "require_vacant", "write_quarantine"]

_DATA_DIRECTORY = "data"
_QUARANTINE_FILE = "quarantine/part-00000.parquet"
# A dataset's files, also as a killed process leaves them while they are written.
_DATASET_FILE = re.compile(
    rf"({MANIFEST_NAME}|{_DATA_DIRECTORY}/({'|'.join(SPLITS)})-\d+\.parquet|quarantine/part-\d+\.parquet)"
    r"(\.[0-9a-f]{32}\.tmp)?"
)
_SMALL_VALUE_BYTES = 16


def require_vacant(dataset: str, overwrite: bool) -> None:
    """Make sure that a dataset may be written to a directory.

    A quarantine alone is what a failed run leaves to be read; it may be replaced without asking.

    Raises:
        UsageError: it is a file, holds something else, or holds a dataset and ``overwrite`` is false.
    """
    fs, inner = storage.filesystem(dataset)
    if fs.isfile(inner):
        raise UsageError(f"{dataset!r} is a file; the dataset needs a folder of its own")
    names = _files_of(dataset)
    foreign = [name for name in names if not _DATASET_FILE.fullmatch(name)]
    if foreign:
        raise UsageError(
            f"{dataset!r} already holds something else ({foreign[0]!r}); choose a new or an empty folder"
        )
    if any(not name.startswith("quarantine/") for name in names) and not overwrite:
        what = "a dataset" if MANIFEST_NAME in names else "an unfinished dataset"
        raise UsageError(
            f"{dataset!r} already holds {what}; choose another folder, or replace it with --overwrite"
        )


def remove_dataset(dataset: str, keep_quarantine: bool = False) -> None:
    """Remove the files a dataset consists of, the manifest first, and nothing else."""
    fs, inner = storage.filesystem(dataset)
    names = [name for name in _files_of(dataset) if _DATASET_FILE.fullmatch(name)]
    for name in sorted(names, key=lambda name: (name != MANIFEST_NAME, name)):
        if not (keep_quarantine and name.startswith("quarantine/")):
            fs.rm_file(f"{inner.rstrip('/')}/{name}")


def write_quarantine(dataset: str, rejected: Sequence[Rejected]) -> None:
    """Write the rejected records, in the order of the source, where there are any."""
    if rejected:
        in_order = sorted(rejected, key=lambda r: (r.source, r.row))
        storage.write_bytes(storage.join(dataset, _QUARANTINE_FILE), to_parquet(in_order))


class ShardLimits(NamedTuple):
    """Where row groups and shards end; a single larger record makes one of its own."""

    rows_per_row_group: int
    row_group_bytes: int
    shard_bytes: int


class ShardWriter:
    """Writes ``data/SPLIT-00000.parquet``, ``data/SPLIT-00001.parquet``, ...

    Args:
        dataset: path or URI of the dataset.
        split: name of the split.
        schema: columns of the records; columns of type binary are media: not compressed, no dictionary, no statistics.
        limits: where row groups and shards end.
    """

    def __init__(self, dataset: str, split: str, schema: pa.Schema, limits: ShardLimits) -> None:
        self._dataset = dataset
        self._split = split
        self._schema = schema
        self._limits = limits
        self._shards: list[Shard] = []
        self._rows: list[Mapping[str, Any]] = []
        self._rows_bytes = 0
        self._sink: io.BytesIO | None = None
        self._writer: pq.ParquetWriter | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Append one record with a value, or None, for every column of the schema."""
        size = sum(_size(record[name]) for name in self._schema.names)
        full = len(self._rows) >= self._limits.rows_per_row_group
        if self._rows and (full or self._rows_bytes + size > self._limits.row_group_bytes):
            self._flush()
        self._rows.append(record)
        self._rows_bytes += size

    def close(self) -> list[Shard]:
        """Write what is buffered; all shards in order."""
        self._flush()
        self._finish_shard()
        return self._shards

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._sink is not None and self._sink.tell() + self._rows_bytes > self._limits.shard_bytes:
            self._finish_shard()
        if self._writer is None:
            self._sink = io.BytesIO()
            self._writer = _open_writer(self._sink, self._schema)
        columns = [pa.array([r[f.name] for r in self._rows], f.type) for f in self._schema]
        self._writer.write_table(pa.table(columns, schema=self._schema), row_group_size=len(self._rows))
        self._rows, self._rows_bytes = [], 0

    def _finish_shard(self) -> None:
        if self._writer is None or self._sink is None:
            return
        self._writer.close()
        payload = self._sink.getvalue()
        groups = _row_groups(self._sink)
        path = f"{_DATA_DIRECTORY}/{self._split}-{len(self._shards):05d}.parquet"
        storage.write_bytes(storage.join(self._dataset, path), payload)
        self._shards.append(
            Shard(
                path=path,
                split=self._split,
                rows=sum(g.rows for g in groups),
                bytes=len(payload),
                sha256=hashlib.sha256(payload).hexdigest(),
                row_groups=groups,
            )
        )
        self._sink = self._writer = None


def _files_of(dataset: str) -> list[str]:
    fs, inner = storage.filesystem(dataset)
    inner = inner.rstrip("/")
    return sorted(str(path)[len(inner) + 1 :] for path in fs.find(inner)) if fs.isdir(inner) else []


def _open_writer(sink: io.BytesIO, schema: pa.Schema) -> pq.ParquetWriter:
    media = {f.name for f in schema if pa.types.is_binary(f.type)}
    others = [name for name in schema.names if name not in media]
    return pq.ParquetWriter(
        sink,
        schema,
        compression={name: "NONE" if name in media else "ZSTD" for name in schema.names},
        use_dictionary=others,
        write_statistics=others,
        write_page_checksum=True,
    )


def _row_groups(sink: io.BytesIO) -> tuple[RowGroup, ...]:
    metadata = pq.read_metadata(io.BytesIO(sink.getbuffer()))
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return tuple(
        RowGroup(rows=g.num_rows, bytes=sum(g.column(c).total_compressed_size for c in range(g.num_columns)))
        for g in groups
    )


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (bytes, str)) else _SMALL_VALUE_BYTES
