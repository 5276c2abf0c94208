"""The order of a run on packed data, measured before it begins."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.pipeline.chunks import Schedule
from xmodal_dist.train.order import measure_order, order_warning


def _schedule(dataset: str, window_rows: int = 8) -> Schedule:
    return Schedule(load_manifest(dataset), seed=0, lanes=2, rows_per_lane=8, window_rows=window_rows)


@pytest.fixture
def sorted_dataset(tiny_dataset: str, tmp_path: Path) -> str:
    """The tiny dataset with its training rows sorted by class, in the same shards."""
    copy = tmp_path / "sorted"
    shutil.copytree(tiny_dataset, copy)
    shards = sorted((copy / "data").glob("train-*"))
    whole = pa.concat_tables([pq.read_table(shard) for shard in shards]).sort_by("label")
    start = 0
    for shard in shards:
        rows = pq.read_metadata(shard).num_rows
        pq.write_table(whole.slice(start, rows), shard, row_group_size=8)
        start += rows
    return str(copy)


def test_packed_data_is_well_mixed_and_nothing_is_said(tiny_dataset: str) -> None:
    began_s = time.thread_time()
    order = measure_order(tiny_dataset, _schedule(tiny_dataset))
    assert time.thread_time() - began_s < 0.5
    assert order.label_mixing > 0.95 and abs(order.rank_correlation) < 0.6
    assert (order.batches, order.records) == (8, 120)
    assert order_warning(order, 8) is None


def test_data_sorted_by_class_is_told_with_what_to_do(sorted_dataset: str) -> None:
    order = measure_order(sorted_dataset, _schedule(sorted_dataset))
    assert order.label_mixing < 0.7
    warning = order_warning(order, 8)
    assert warning is not None and "xmodal pack" in warning and "pipeline.window_rows (now 8)" in warning
    wider = measure_order(sorted_dataset, _schedule(sorted_dataset, window_rows=64))
    assert wider.label_mixing > order.label_mixing + 0.1


def test_only_a_bounded_part_of_a_large_dataset_is_read(tiny_dataset: str) -> None:
    every = measure_order(tiny_dataset, _schedule(tiny_dataset))
    some = measure_order(tiny_dataset, _schedule(tiny_dataset), max_row_groups=8)
    assert 0 < some.batches < every.batches
    assert measure_order(tiny_dataset, _schedule(tiny_dataset), max_row_groups=1).batches == 1
