"""The plan: which records a lane reads in an epoch, and in which order. Pure functions; no files, no Ray.

An epoch permutes the row groups of a split (seeded by seed and epoch) and lays them end to end; lane l of L takes rows
[l*N/L, (l+1)*N/L) of that line, so lanes differ by at most one row, whatever the sizes of the row groups; a row group
on a border is read by both lanes, each its own part. Within a lane, rows are permuted inside windows of a fixed
number of rows. Global step t takes rows [t*b, (t+1)*b) of every lane: it depends on the number of lanes, never on the
number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xmodal_dist.dataset.manifest import Manifest

__all__ = [
    "Unit",
    "lane_bounds",
    "lanes_of_rank",
    "plan_lanes",
    "row_group_units",
    "steps_per_epoch",
    "window_order",
    "window_units",
]


class Unit(NamedTuple):
    """Rows [start, stop) of one shard; ``shard`` is its index in the manifest."""

    shard: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def row_group_units(manifest: Manifest, split: str) -> list[Unit]:
    """One unit per row group of a split, in shard order; row groups without rows are left out."""
    units = []
    for index, shard in manifest.split_shards(split):
        start = 0
        for group in shard.row_groups:
            if group.rows:
                units.append(Unit(index, start, start + group.rows))
            start += group.rows
    return units


def lane_bounds(rows: int, lanes: int) -> list[tuple[int, int]]:
    """Half-open ranges of the epoch's line of ``rows`` rows that each lane takes; sizes differ by at most one."""
    return [(lane * rows // lanes, (lane + 1) * rows // lanes) for lane in range(lanes)]


def plan_lanes(units: Sequence[Unit], lanes: int, seed: int | None, epoch: int = 0) -> list[list[Unit]]:
    """The units of each lane in reading order.

    Args:
        units: the split's row groups.
        lanes: number of lanes, fixed for a run.
        seed: seed of the run; None keeps the order of ``units`` (evaluation).
        epoch: from 0; each epoch has another order.
    """
    order = range(len(units)) if seed is None else _generator(seed, epoch, "units").permutation(len(units))
    line = [units[i] for i in order]
    bounds = lane_bounds(sum(u.rows for u in line), lanes)
    return _cut(line, bounds)


def window_units(lane: Sequence[Unit], start: int, stop: int) -> list[Unit]:
    """The parts of a lane's units that hold its rows [start, stop)."""
    return _cut(lane, [(start, stop)])[0]


def window_order(rows: int, seed: int | None, epoch: int, lane: int, window: int) -> NDArray[np.int64]:
    """Order in which the ``rows`` rows of one window of one lane are used; the identity where seed is None."""
    if seed is None:
        return np.arange(rows, dtype=np.int64)
    return _generator(seed, epoch, f"window/{lane}/{window}").permutation(rows).astype(np.int64)


def steps_per_epoch(rows: int, lanes: int, rows_per_lane: int) -> int:
    """Global steps in which every lane is used up, at ``rows_per_lane`` rows of each lane a step."""
    longest = -(-rows // lanes)
    return -(-longest // rows_per_lane)


def lanes_of_rank(rank: int, num_workers: int, lanes: int) -> list[int]:
    """Lanes that a rank reads: rank, rank + num_workers, ..."""
    return list(range(rank, lanes, num_workers))


def _cut(line: Sequence[Unit], bounds: Sequence[tuple[int, int]]) -> list[list[Unit]]:
    """Cut units laid end to end at sorted, disjoint row ranges; every range gets the parts inside it."""
    pieces: list[list[Unit]] = [[] for _ in bounds]
    at, position = 0, 0
    for unit in line:
        end = position + unit.rows
        while at < len(bounds) and bounds[at][1] <= position:
            at += 1
        target = at
        while target < len(bounds) and bounds[target][0] < end:
            low, high = max(bounds[target][0], position), min(bounds[target][1], end)
            if low < high:
                pieces[target].append(
                    Unit(unit.shard, unit.start + low - position, unit.start + high - position)
                )
            target += 1
        position = end
    return pieces


def _generator(seed: int, epoch: int, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
