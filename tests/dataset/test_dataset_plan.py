"""The plan's invariants over thousands of random row-group lists; no files, no Ray."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.dataset.manifest import Manifest, RowGroup, Shard, SplitSummary
from xmodal_dist.dataset.plan import (
    Unit,
    lane_bounds,
    lanes_of_rank,
    plan_lanes,
    row_group_units,
    steps_per_epoch,
    window_order,
    window_units,
)
from xmodal_dist.dataset.schema import Field
from xmodal_dist.errors import UsageError

MANY = settings(max_examples=1000, deadline=None)


@st.composite
def unit_lists(draw: st.DrawFn) -> list[Unit]:
    """Row groups of up to five shards, each shard's laid end to end."""
    units = []
    for shard in range(draw(st.integers(1, 5))):
        start = 0
        for rows in draw(st.lists(st.integers(1, 40), min_size=0, max_size=8)):
            units.append(Unit(shard, start, start + rows))
            start += rows
    return units


lanes_ = st.integers(1, 17)
seeds = st.one_of(st.none(), st.integers(0, 2**31))
epochs = st.integers(0, 5)


def _rows(units: list[Unit]) -> list[tuple[int, int]]:
    return [(u.shard, row) for u in units for row in range(u.start, u.stop)]


@MANY
@given(unit_lists(), lanes_, seeds, epochs)
def test_every_record_is_read_once_an_epoch(
    units: list[Unit], lanes: int, seed: int | None, epoch: int
) -> None:
    plan = plan_lanes(units, lanes, seed, epoch)
    assert len(plan) == lanes
    assert Counter(row for lane in plan for row in _rows(lane)) == Counter(_rows(units))


@MANY
@given(unit_lists(), lanes_, seeds, epochs)
def test_lanes_differ_by_one_row_at_most(units: list[Unit], lanes: int, seed: int | None, epoch: int) -> None:
    sizes = [sum(u.rows for u in lane) for lane in plan_lanes(units, lanes, seed, epoch)]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == [stop - start for start, stop in lane_bounds(sum(sizes), lanes)]


def _steps(
    units: list[Unit], lanes: int, workers: int, rows_per_lane: int, window_rows: int, seed: int, epoch: int
) -> list[set[tuple[int, int]]]:
    """Rows of every global step, as ``workers`` ranks read their own lanes."""
    plan = plan_lanes(units, lanes, seed, epoch)
    steps = steps_per_epoch(sum(u.rows for u in units), lanes, rows_per_lane)
    content: list[set[tuple[int, int]]] = [set() for _ in range(steps)]
    for rank in range(workers):
        for lane in lanes_of_rank(rank, workers, lanes):
            rows_in_lane = sum(u.rows for u in plan[lane])
            line: list[tuple[int, int]] = []
            for window, start in enumerate(range(0, rows_in_lane, window_rows)):
                part = _rows(window_units(plan[lane], start, start + window_rows))
                order = window_order(len(part), seed, epoch, lane, window)
                line += [part[i] for i in order]
            for step in range(steps):
                batch = line[step * rows_per_lane : (step + 1) * rows_per_lane]
                assert not content[step].intersection(batch)
                content[step].update(batch)
    return content


@settings(max_examples=300, deadline=None)
@given(unit_lists(), st.integers(4, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99), epochs)
def test_global_steps_do_not_depend_on_the_number_of_workers(
    units: list[Unit], lanes: int, rows_per_lane: int, steps_per_window: int, seed: int, epoch: int
) -> None:
    alone, *others = (
        _steps(units, lanes, workers, rows_per_lane, rows_per_lane * steps_per_window, seed, epoch)
        for workers in (1, 2, 3, 4)
    )
    assert all(other == alone for other in others)
    assert sum(map(len, alone)) == sum(u.rows for u in units)
    assert all(alone), "a step without any record"


@given(st.integers(1, 8), st.integers(1, 64))
def test_ranks_share_the_lanes(workers: int, lanes: int) -> None:
    owned = [lane for rank in range(workers) for lane in lanes_of_rank(rank, workers, lanes)]
    assert sorted(owned) == list(range(lanes))
    assert all(
        lane % workers == rank for rank in range(workers) for lane in lanes_of_rank(rank, workers, lanes)
    )


def test_each_epoch_has_its_own_order_and_repeats_it() -> None:
    units = [Unit(0, 10 * i, 10 * i + 10) for i in range(50)]
    plans = [plan_lanes(units, 4, 7, epoch) for epoch in range(4)]
    assert plans == [plan_lanes(units, 4, 7, epoch) for epoch in range(4)]
    assert len({str(plan) for plan in plans}) == 4
    assert plan_lanes(units, 4, 8, 0) != plans[0]
    orders = [tuple(window_order(100, 7, epoch, 0, 0)) for epoch in range(4)]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(window_order(100, 7, 0, 0, 0))
    assert orders[0] != tuple(window_order(100, 7, 0, 1, 0))
    assert orders[0] != tuple(window_order(100, 7, 0, 0, 1))


@given(unit_lists(), lanes_, st.integers(0, 2**31), epochs)
def test_equal_seed_and_epoch_give_the_equal_plan(
    units: list[Unit], lanes: int, seed: int, epoch: int
) -> None:
    assert plan_lanes(units, lanes, seed, epoch) == plan_lanes(list(units), lanes, seed, epoch)


@given(st.integers(0, 2**31), epochs)
def test_two_epochs_read_many_row_groups_in_different_orders(seed: int, epoch: int) -> None:
    units = [Unit(0, 3 * i, 3 * i + 3) for i in range(40)]
    assert plan_lanes(units, 4, seed, epoch) != plan_lanes(units, 4, seed, epoch + 1)


@MANY
@given(unit_lists(), st.integers(0, 200), st.integers(0, 200))
def test_a_window_is_that_part_of_its_lane(units: list[Unit], start: int, length: int) -> None:
    assert _rows(window_units(units, start, start + length)) == _rows(units)[start : start + length]


@given(unit_lists(), lanes_)
def test_without_a_seed_the_order_is_that_of_the_files(units: list[Unit], lanes: int) -> None:
    plan = plan_lanes(units, lanes, None)
    assert [row for lane in plan for row in _rows(lane)] == _rows(units)
    assert list(window_order(9, None, 3, 2, 1)) == list(range(9))


@MANY
@given(unit_lists(), st.integers(1, 50))
def test_windows_partition_a_lane(units: list[Unit], window_rows: int) -> None:
    rows = sum(u.rows for u in units)
    windows = [window_units(units, start, start + window_rows) for start in range(0, rows, window_rows)]
    assert [row for window in windows for row in _rows(window)] == _rows(units)
    assert all(sum(u.rows for u in window) == window_rows for window in windows[:-1])
    assert all(u.rows > 0 for window in windows for u in window)


@given(st.integers(0, 1000), lanes_, st.integers(1, 9))
def test_steps_use_up_every_lane_and_no_more(rows: int, lanes: int, rows_per_lane: int) -> None:
    longest = max(stop - start for start, stop in lane_bounds(rows, lanes))
    steps = steps_per_epoch(rows, lanes, rows_per_lane)
    assert steps * rows_per_lane >= longest
    assert longest == 0 or (steps - 1) * rows_per_lane < longest


@given(st.integers(0, 200), st.integers(0, 99), epochs, st.integers(0, 3), st.integers(0, 3))
def test_a_window_order_is_a_permutation(rows: int, seed: int, epoch: int, lane: int, window: int) -> None:
    assert np.array_equal(np.sort(window_order(rows, seed, epoch, lane, window)), np.arange(rows))


def _shard(path: str, split: str, rows: list[int]) -> Shard:
    groups = tuple(RowGroup(rows=r, bytes=1) for r in rows)
    return Shard(path=path, split=split, rows=sum(rows), bytes=1, sha256="", row_groups=groups)


def test_row_group_units_follow_the_shards_of_their_split() -> None:
    manifest = Manifest(
        fields=(Field(name="x", kind="text", columns=("x",)),),
        classes=("a", "b"),
        splits={
            "train": SplitSummary(rows=9, classes={}, missing={}),
            "test": SplitSummary(rows=0, classes={}, missing={}),
        },
        shards=(_shard("a", "train", [3, 0, 2]), _shard("b", "val", [5]), _shard("c", "train", [4])),
        source_rows=14,
        quarantined_rows=0,
        seed=0,
    )
    assert row_group_units(manifest, "train") == [Unit(0, 0, 3), Unit(0, 3, 5), Unit(2, 0, 4)]
    with pytest.raises(UsageError, match="the split 'test' is empty"):
        row_group_units(manifest, "test")
    with pytest.raises(UsageError, match="no split 'dev'; its splits: test, train"):
        row_group_units(manifest, "dev")
