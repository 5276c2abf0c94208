"""The reader of packed records: fetches a chunk's row groups, then decodes some of its steps to Records.

The same code runs in threads of the worker and in Ray Data tasks. It knows what to read, not who consumes it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist import storage
from xmodal_dist.batch import Records
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.schema import ID, LABEL, WEIGHT
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.cache import Found, UnitCache
from xmodal_dist.pipeline.chunks import Chunk, Schedule
from xmodal_dist.pipeline.decode import decode_table, decoded_row_bytes, unpack_table
from xmodal_dist.pipeline.gather import GatheredRows
from xmodal_dist.pipeline.rows import read_row_groups, read_rows
from xmodal_dist.randomness import derive_keys
from xmodal_dist.task import task_of

__all__ = ["ChunkReader", "FetchedChunk", "Piece"]


class FetchedChunk(NamedTuple):
    """The encoded rows of a chunk.

    Attributes:
        chunk: which one.
        shard: [slots] index in the manifest; -1 marks padding.
        row: [slots] position in the shard.
        rows: the rows of the slots that are not padding, in slot order.
        cpu_s: CPU-seconds that fetching took.
        cached_rows: how many of the rows came decoded from the cache.
    """

    chunk: Chunk
    shard: NDArray[np.int64]
    row: NDArray[np.int64]
    rows: GatheredRows
    cpu_s: float
    cached_rows: int


class Piece(NamedTuple):
    """Some consecutive steps, decoded.

    Attributes:
        records: rows in step order, then lane, then place in it; padding has weight 0, label and id -1, and a record
            that could not be decoded weight 0 and label -1.
        steps: number of global steps.
        rejected: the records that could not be decoded.
        cpu_s: CPU-seconds that reading and decoding took.
        cached_rows: records that came decoded from the cache.
        fallbacks: what took a slower decoder -> number of values.
    """

    records: Records
    steps: int
    rejected: list[Rejected]
    cpu_s: float
    cached_rows: int
    fallbacks: Counter[str]


class _Group(NamedTuple):
    table: pa.Table
    cached: bool
    cpu_s: float


class _Part(NamedTuple):
    """Some columns and the fields that read them; ``digest`` says what unpacking depends on but for data and code."""

    columns: list[str]
    specs: tuple[FieldSpec, ...]
    digest: str

    @staticmethod
    def of(columns: list[str], specs: tuple[FieldSpec, ...]) -> _Part:
        identity = json.dumps([spec.unpack_identity for spec in specs], sort_keys=True)
        return _Part(columns, specs, hashlib.sha256(identity.encode()).hexdigest())


@dataclass(frozen=True)
class ChunkReader:
    """Reads chunks of one packed dataset.

    Attributes:
        dataset: path or URI of the dataset.
        specs: the fields to decode.
        schedule: in which order.
        cache: where decoded row groups are kept on this node; None decodes anew each time.
    """

    dataset: str
    specs: tuple[FieldSpec, ...]
    schedule: Schedule
    cache: UnitCache | None = None
    _last: dict[tuple[int, int], _Group] = field(init=False, default_factory=dict, compare=False, repr=False)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one decoded record."""
        return decoded_row_bytes(self.specs)

    def read(self, chunk: Chunk) -> Piece:
        """Fetch and decode a whole chunk in this thread."""
        return self.decode(self.fetch(chunk), 0, chunk.steps)

    def fetch(self, chunk: Chunk, pool: Executor | None = None) -> FetchedChunk:
        """Read the row groups that a chunk needs.

        A window rarely ends where a row group does, so row groups of the chunk before are kept for the next.

        Args:
            chunk: the steps to read.
            pool: reads several row groups at once; must not be the one that this call runs in.
        """
        began_s = time.thread_time()
        places = self.schedule.places(chunk)
        real = places.shard >= 0
        shard, row = places.shard[real], places.row[real]
        at = self._first_row_of_shard[shard] + row
        keys, source = np.unique(self._group_of(at), return_inverse=True)
        groups = self._groups([(int(s), int(group)) for s, group in self._numbered[keys]], pool)
        tables = [g.table for g in groups] or [self._empty_table]
        rows = GatheredRows(tables, source, at - self._first_rows[keys[source]])
        cached = np.array([g.cached for g in groups], dtype=np.bool_)
        cached_rows = int(cached[source].sum()) if len(source) else 0
        cpu_s = time.thread_time() - began_s + sum(g.cpu_s for g in groups)
        return FetchedChunk(chunk, places.shard, places.row, rows, cpu_s, cached_rows)

    def decode(self, fetched: FetchedChunk, start: int, stop: int) -> Piece:
        """Decode the chunk's steps [start, stop), counted from its first."""
        began_s = time.thread_time()
        chunk = fetched.chunk
        per_step = self.schedule.rows_per_step(chunk.rank, chunk.num_workers)
        slots = slice(start * per_step, stop * per_step)
        shard, row = fetched.shard[slots], fetched.row[slots]
        filled = np.flatnonzero(shard >= 0)
        before = int((fetched.shard[: slots.start] >= 0).sum())
        table = fetched.rows.take(before, before + len(filled))
        records, rejected, fallbacks = self._records(table, chunk, shard[filled], row[filled])
        cpu_s = time.thread_time() - began_s
        cached = 0
        if start == 0:  # what fetching took is told once, with the first steps
            cpu_s, cached = cpu_s + fetched.cpu_s, fetched.cached_rows
        return Piece(_scatter(records, filled, len(shard)), stop - start, rejected, cpu_s, cached, fallbacks)

    def _records(
        self, table: pa.Table, chunk: Chunk, shard: NDArray[np.int64], row: NDArray[np.int64]
    ) -> tuple[Records, list[Rejected], Counter[str]]:
        manifest = self.schedule.manifest
        keys = derive_keys(self.schedule.seed, chunk.epoch, shard, row)
        decoded = decode_table(table, self.specs, keys if chunk.augment else None)
        labels = task_of(manifest.task).targets(table.column(LABEL), self._classes)
        weights = np.ones(len(row), dtype=np.float32)
        if manifest.has_weights:
            weights = table.column(WEIGHT).to_numpy().astype(np.float32)
        rejected: dict[int, Rejected] = {}
        for at, name, error in decoded.errors:
            weights[at], labels[at] = 0.0, -1
            place = manifest.shards[int(shard[at])].path
            known = str(table.column(ID)[at].as_py())
            rejected.setdefault(at, Rejected.of(error, place, int(row[at]), known, name))
        ids = self._first_ids[shard] + row
        records = Records(decoded.fields, decoded.present, labels, weights, keys, ids)
        return records, list(rejected.values()), decoded.fallbacks

    def _groups(self, wanted: Sequence[tuple[int, int]], pool: Executor | None) -> list[_Group]:
        """The row groups, in order; those of the call before are not read again."""
        known = {key: self._last[key] for key in wanted if key in self._last}
        by_shard: dict[int, list[int]] = {}
        for shard, group in wanted:
            if (shard, group) not in known:
                by_shard.setdefault(shard, []).append(group)
        jobs = list(by_shard.items())
        results = (pool.map if pool else map)(lambda job: self._read(*job), jobs)
        for (shard, numbers), read in zip(jobs, results, strict=True):
            known |= {(shard, number): group for number, group in zip(numbers, read, strict=True)}
        self._last.clear()
        # What it cost has been told; the next call must not tell it again.
        self._last.update({key: group._replace(cpu_s=0.0) for key, group in known.items()})
        return [known[key] for key in wanted]

    def _read(self, shard: int, groups: list[int]) -> list[_Group]:
        """Row groups of one shard, decoded as far as the cache holds or takes them."""
        began_s = time.thread_time()
        info = self.schedule.manifest.shards[shard]
        path = storage.join(self.dataset, info.path)
        if self.cache is None:
            tables = read_row_groups(path, groups, self._columns, info.sha256)
            read = [_Group(table, False, 0.0) for table in tables]
        else:
            read = [self._through_cache(self.cache, path, info.sha256, group) for group in groups]
        return [read[0]._replace(cpu_s=time.thread_time() - began_s), *read[1:]]

    def _through_cache(self, cache: UnitCache, path: str, sha256: str, group: int) -> _Group:
        def entry(part: _Part) -> Found:
            def decode() -> pa.Table:
                (table,) = read_row_groups(path, [group], part.columns, sha256)
                return unpack_table(table, part.specs)

            return cache.get_or_add([sha256, group, part.columns, part.digest], decode)

        found = [entry(part) for part in self._parts]
        columns = {name: table.column(name) for table, _ in found for name in table.column_names}
        return _Group(pa.table(columns), all(hit for _, hit in found), 0.0)

    @cached_property
    def _parts(self) -> list[_Part]:
        """What the cache holds of a row group in entries of their own: most fields, and each that stands apart."""
        apart = [spec for spec in self.specs if spec.cached_apart]
        taken = {name for spec in apart for name in spec.columns}
        others = [name for name in self._columns if name not in taken]
        together = tuple(spec for spec in self.specs if not spec.cached_apart)
        return [_Part.of(others, together), *(_Part.of(list(s.columns), (s,)) for s in apart)]

    @cached_property
    def _classes(self) -> pa.Array:
        return pa.array(self.schedule.manifest.classes, pa.string())

    @cached_property
    def _columns(self) -> list[str]:
        columns = [ID, LABEL, *(c for s in self.specs for c in s.columns)]
        return [*columns, WEIGHT] if self.schedule.manifest.has_weights else columns

    @cached_property
    def _first_ids(self) -> NDArray[np.int64]:
        """For each shard, the position of its first row in its split."""
        seen: Counter[str] = Counter()
        first = []
        for shard in self.schedule.manifest.shards:
            first.append(seen[shard.split])
            seen[shard.split] += shard.rows
        return np.array(first, dtype=np.int64)

    @cached_property
    def _numbered(self) -> NDArray[np.int64]:
        """[row groups of the dataset, 2] shard and row group, in order."""
        shards = self.schedule.manifest.shards
        pairs = [(s, number) for s, shard in enumerate(shards) for number in range(len(shard.row_groups))]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    @cached_property
    def _first_rows(self) -> NDArray[np.int64]:
        """For each row group of the dataset, the position of its first row when all shards are laid end to end."""
        rows = [group.rows for shard in self.schedule.manifest.shards for group in shard.row_groups]
        return np.cumsum([0, *rows], dtype=np.int64)[:-1]

    @cached_property
    def _first_row_of_shard(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(s.rows for s in self.schedule.manifest.shards)], dtype=np.int64)[:-1]

    def _group_of(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row group of the dataset that holds each row, given by its position in all shards laid end to end."""
        return np.searchsorted(self._first_rows, at, side="right") - 1

    @cached_property
    def _empty_table(self) -> pa.Table:
        """No rows, with the columns of real ones (a rank whose lanes are used up still steps)."""
        shard = next(s for s in self.schedule.manifest.shards if s.rows)
        path = storage.join(self.dataset, shard.path)
        return read_rows(path, np.zeros(0, dtype=np.int64), self._columns)


def _scatter(rows: Records, slot: NDArray[np.int64], size: int) -> Records:
    """Rows at their slots among ``size``; slots without a row are padding: zeros, weight 0, label and id -1."""
    if len(slot) == size:
        return rows

    def place(array: NDArray[np.generic], fill: int = 0) -> NDArray[np.generic]:
        out = np.full((size, *array.shape[1:]), fill, dtype=array.dtype)
        out[slot] = array
        return out

    return Records(
        {name: {key: place(a) for key, a in arrays.items()} for name, arrays in rows.fields.items()},
        place(rows.present),  # type: ignore[arg-type]
        place(rows.labels, -1),  # type: ignore[arg-type]
        place(rows.weights),  # type: ignore[arg-type]
        place(rows.keys),  # type: ignore[arg-type]
        place(rows.ids, -1),  # type: ignore[arg-type]
    )
