"""Which rows a rank reads when: chunks of consecutive global steps, and the slot that every row fills in them.

Pure functions of the plan; nothing is read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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

__all__ = ["Chunk", "Places", "Schedule"]

_KEPT_PLANS = 4


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

    @property
    def steps(self) -> int:
        """Number of global steps."""
        return self.stop_step - self.start_step


class Places(NamedTuple):
    """Where the row of each of a chunk's slots comes from; slots are in step order, then lane, then place in it.

    Attributes:
        shard: [slots] index in the manifest; -1 marks padding.
        row: [slots] position in the shard; 0 at padding.
    """

    shard: NDArray[np.int64]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class Schedule:
    """The order in which a run reads a dataset.

    Attributes:
        manifest: the dataset's.
        seed: seed of the order.
        lanes: number of lanes, fixed for a run.
        rows_per_lane: rows of each lane in one global step.
        window_rows: rows of a lane that are permuted together; a multiple of ``rows_per_lane``.
    """

    manifest: Manifest
    seed: int
    lanes: int
    rows_per_lane: int
    window_rows: int
    _plans: dict[tuple[str, int, bool], list[list[Unit]]] = field(
        init=False, default_factory=dict, compare=False, repr=False
    )

    def steps(self, split: str) -> int:
        """Global steps of one epoch of a split."""
        return steps_per_epoch(self.manifest.splits[split].rows, self.lanes, self.rows_per_lane)

    def rows_per_step(self, rank: int, num_workers: int) -> int:
        """Rows, padding included, of one step of a rank."""
        return len(lanes_of_rank(rank, num_workers, self.lanes)) * self.rows_per_lane

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

    def places(self, chunk: Chunk) -> Places:
        """The row in each slot of a chunk."""
        seed = self.seed if chunk.augment else None
        plan = self._plan(chunk)
        own = lanes_of_rank(chunk.rank, chunk.num_workers, self.lanes)
        shape = (chunk.steps, len(own), self.rows_per_lane)
        places = Places(np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int64))
        first = chunk.window * self.window_rows
        start = chunk.start_step * self.rows_per_lane - first
        stop = start + chunk.steps * self.rows_per_lane
        for place, lane in enumerate(own):
            line = _expand(window_units(plan[lane], first, first + self.window_rows))
            used = window_order(len(line.row), seed, chunk.epoch, lane, chunk.window)[start:stop]
            for slots, values in zip(places, line, strict=True):
                mine = slots[:, place].reshape(-1)
                mine[: len(used)] = values[used]
                slots[:, place] = mine.reshape(chunk.steps, self.rows_per_lane)
        return Places(places.shard.reshape(-1), places.row.reshape(-1))

    def _plan(self, chunk: Chunk) -> list[list[Unit]]:
        """The plan of the chunk's epoch; those of the last few epochs are kept."""
        key = (chunk.split, chunk.epoch, chunk.augment)
        if key not in self._plans:
            while len(self._plans) >= _KEPT_PLANS:
                self._plans.pop(next(iter(self._plans)), None)
            seed = self.seed if chunk.augment else None
            units = row_group_units(self.manifest, chunk.split)
            self._plans[key] = plan_lanes(units, self.lanes, seed, chunk.epoch)
        return self._plans[key]


def _expand(units: Sequence[Unit]) -> Places:
    """Shard and row of every row of some units, in order."""
    if not units:
        return Places(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    shard = np.concatenate([np.full(u.rows, u.shard, dtype=np.int64) for u in units])
    return Places(shard, np.concatenate([np.arange(u.start, u.stop, dtype=np.int64) for u in units]))
