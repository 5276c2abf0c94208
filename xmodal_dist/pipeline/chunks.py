"""A chunk: consecutive global steps of one rank, read as one task; and the reader that turns it into Records.

The same code runs in Ray Data tasks and in threads of the worker. It knows the plan, not who consumes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xmodal_dist import storage
from xmodal_dist.batch import Arrays, Records
from xmodal_dist.dataset.manifest import Manifest
from xmodal_dist.dataset.plan import (
    Unit,
    lanes_of_rank,
    plan_lanes,
    row_group_units,
    steps_per_epoch,
    window_order,
    window_units,
)
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.schema import ID, LABEL, WEIGHT
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.modalities.randomness import derive_keys
from xmodal_dist.pipeline.decode import decode_table
from xmodal_dist.pipeline.rows import read_rows

__all__ = ["Chunk", "ChunkReader", "ReadChunk"]


class Chunk(NamedTuple):
    """Steps [start_step, stop_step) of one rank in one epoch, all within one window of its lanes.

    ``augment`` is true for training: rows are permuted and random crops drawn; evaluation reads in order.
    """

    split: str
    epoch: int
    window: int
    start_step: int
    stop_step: int
    rank: int
    num_workers: int
    augment: bool


class ReadChunk(NamedTuple):
    """The rows of a chunk in step order.

    Attributes:
        records: the rows; a record that could not be decoded has weight 0 and label -1.
        rejected: those records.
        cpu_s: CPU-seconds of the reading thread.
    """

    records: Records
    rejected: list[Rejected]
    cpu_s: float


class _Slots(NamedTuple):
    """Where each of n real rows comes from and which of the chunk's slots it fills."""

    shard: NDArray[np.int64]
    row: NDArray[np.int64]
    slot: NDArray[np.int64]


@dataclass(frozen=True)
class ChunkReader:
    """Reads chunks of one packed dataset.

    Attributes:
        dataset: path or URI of the dataset.
        manifest: its manifest.
        specs: the fields to decode.
        seed: seed of order and augmentation.
        lanes: number of lanes, fixed for a run.
        rows_per_lane: rows of each lane in one global step.
        window_rows: rows of a lane that are permuted together; a multiple of ``rows_per_lane``.
        decode_threads: threads that decode one chunk.
    """

    dataset: str
    manifest: Manifest
    specs: tuple[FieldSpec, ...]
    seed: int
    lanes: int
    rows_per_lane: int
    window_rows: int
    decode_threads: int
    _plans: dict[tuple[str, int, bool], list[list[Unit]]] = field(
        init=False, default_factory=dict, compare=False, repr=False
    )

    def steps(self, split: str) -> int:
        """Global steps of one epoch of a split."""
        return steps_per_epoch(self.manifest.splits[split].rows, self.lanes, self.rows_per_lane)

    def chunks(
        self, split: str, epoch: int, rank: int, num_workers: int, *, augment: bool, start_step: int = 0
    ) -> Iterator[Chunk]:
        """A rank's chunks of one epoch in order, from ``start_step`` on; nothing before it is read."""
        steps_per_window = self.window_rows // self.rows_per_lane
        total = self.steps(split)
        step = start_step
        while step < total:
            window = step // steps_per_window
            stop = min((window + 1) * steps_per_window, total)
            yield Chunk(split, epoch, window, step, stop, rank, num_workers, augment)
            step = stop

    def rows_per_step(self, rank: int, num_workers: int) -> int:
        """Rows, padding included, of one step of a rank."""
        return len(lanes_of_rank(rank, num_workers, self.lanes)) * self.rows_per_lane

    def read(self, chunk: Chunk) -> ReadChunk:
        """Read and decode a chunk; rows are in step order, then lane, then place in the lane."""
        began_s = time.thread_time()
        slots = self._locate(chunk)
        keys = derive_keys(self.seed, chunk.epoch, slots.shard, slots.row)
        order = np.lexsort((slots.row, slots.shard))
        slots, keys = _Slots(*(a[order] for a in slots)), keys[order]
        parts = [self._read_shard(int(shard), slots, keys, chunk.augment) for shard in np.unique(slots.shard)]
        size = (chunk.stop_step - chunk.start_step) * self.rows_per_step(chunk.rank, chunk.num_workers)
        rows = _merge([p.records for p in parts]) if parts else self._empty()
        rejected = [r for part in parts for r in part.rejected]
        return ReadChunk(_scatter(rows, slots.slot, size), rejected, time.thread_time() - began_s)

    def _locate(self, chunk: Chunk) -> _Slots:
        """Rows of this rank's lanes in the chunk's steps, each with its slot."""
        seed = self.seed if chunk.augment else None
        plan = self._plan(chunk)
        own = lanes_of_rank(chunk.rank, chunk.num_workers, self.lanes)
        parts: list[tuple[NDArray[np.int64], ...]] = []
        for place, lane in enumerate(own):
            units = window_units(
                plan[lane], chunk.window * self.window_rows, (chunk.window + 1) * self.window_rows
            )
            shard, row = _expand(units)
            order = window_order(len(row), seed, chunk.epoch, lane, chunk.window)
            at = np.arange(len(row))
            step = chunk.window * (self.window_rows // self.rows_per_lane) + at // self.rows_per_lane
            slot = (
                (step - chunk.start_step) * len(own) + place
            ) * self.rows_per_lane + at % self.rows_per_lane
            used = (step >= chunk.start_step) & (step < chunk.stop_step)
            parts.append((shard[order][used], row[order][used], slot[used]))
        return _Slots(*(np.concatenate([p[i] for p in parts]).astype(np.int64) for i in range(3)))

    def _plan(self, chunk: Chunk) -> list[list[Unit]]:
        """The plan of the chunk's epoch; those of the last few epochs are kept."""
        key = (chunk.split, chunk.epoch, chunk.augment)
        if key not in self._plans:
            while len(self._plans) >= 4:
                self._plans.pop(next(iter(self._plans)), None)
            seed = self.seed if chunk.augment else None
            units = row_group_units(self.manifest, chunk.split)
            self._plans[key] = plan_lanes(units, self.lanes, seed, chunk.epoch)
        return self._plans[key]

    def _columns(self) -> list[str]:
        columns = [ID, LABEL, *(c for s in self.specs for c in s.columns)]
        return [*columns, WEIGHT] if self.manifest.has_weights else columns

    def _read_shard(self, shard: int, slots: _Slots, keys: NDArray[np.uint64], augment: bool) -> ReadChunk:
        here = slots.shard == shard
        rows, keys = slots.row[here], keys[here]
        info = self.manifest.shards[shard]
        table = read_rows(storage.join(self.dataset, info.path), rows, self._columns())
        decoded = decode_table(table, self.specs, keys if augment else None, self.decode_threads)
        classes = {name: index for index, name in enumerate(self.manifest.classes)}
        labels = np.array([classes.get(v, -1) for v in table.column(LABEL).to_pylist()], dtype=np.int64)
        weights = np.ones(len(rows), dtype=np.float32)
        if self.manifest.has_weights:
            weights = table.column(WEIGHT).to_numpy().astype(np.float32)
        ids = table.column(ID)
        rejected: dict[int, Rejected] = {}
        for error in decoded.errors:
            weights[error.row], labels[error.row] = 0.0, -1
            rejected.setdefault(
                error.row,
                Rejected.of(
                    error.error, info.path, int(rows[error.row]), str(ids[error.row].as_py()), error.field
                ),
            )
        before = sum(s.rows for s in self.manifest.shards[:shard] if s.split == info.split)
        records = Records(decoded.fields, decoded.present, labels, weights, keys, before + rows)
        return ReadChunk(records, list(rejected.values()), 0.0)

    def _empty(self) -> Records:
        """No rows, with the shapes and types of real ones (a rank whose lanes are used up still steps)."""
        first = next(i for i, shard in enumerate(self.manifest.shards) if shard.rows)
        none = np.zeros(0, dtype=np.int64)
        table = read_rows(storage.join(self.dataset, self.manifest.shards[first].path), none, self._columns())
        decoded = decode_table(table, self.specs, None, 1)
        return Records(
            decoded.fields, decoded.present, none, none.astype(np.float32), none.astype(np.uint64), none
        )


def _expand(units: Sequence[Unit]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shard and row of every row of some units, in order."""
    if not units:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    shard = np.concatenate([np.full(u.rows, u.shard, dtype=np.int64) for u in units])
    return shard, np.concatenate([np.arange(u.start, u.stop, dtype=np.int64) for u in units])


def _merge(parts: Sequence[Records]) -> Records:
    if len(parts) == 1:
        return parts[0]
    fields: dict[str, Arrays] = {
        name: {key: np.concatenate([p.fields[name][key] for p in parts]) for key in arrays}
        for name, arrays in parts[0].fields.items()
    }
    return Records(
        fields,
        np.concatenate([p.present for p in parts]),
        np.concatenate([p.labels for p in parts]),
        np.concatenate([p.weights for p in parts]),
        np.concatenate([p.keys for p in parts]),
        np.concatenate([p.ids for p in parts]),
    )


def _scatter(rows: Records, slot: NDArray[np.int64], size: int) -> Records:
    """Rows at their slots among ``size``; slots without a row are padding: zeros, weight 0, label and id -1."""
    if len(slot) == size and np.array_equal(slot, np.arange(size)):
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
