"""How well mixed the batches of a run will be, measured on a sample before it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import Manifest, Shard
from xmodal_dist.dataset.order import WELL_MIXED, OrderQuality, order_quality
from xmodal_dist.dataset.schema import LABEL
from xmodal_dist.pipeline.chunks import Places, Schedule
from xmodal_dist.pipeline.rows import read_row_groups
from xmodal_dist.task import MULTICLASS, task_of

__all__ = ["measure_order", "order_warning"]

_MAX_WINDOWS = 16


def measure_order(dataset: str, schedule: Schedule, max_row_groups: int = 64) -> OrderQuality:
    """The quality of the first epoch's order, of all global batches in up to 16 windows spread over it.

    Args:
        dataset: path or URI of the dataset.
        schedule: the order.
        max_row_groups: about the most row groups whose labels are read; one window of every lane is, in any case.
    """
    manifest = schedule.manifest
    windows = list(schedule.chunks("train", 0, 0, 1, augment=True))
    needed = sum(len(groups) for _, _, groups in _by_shard(schedule, schedule.places(windows[0])))
    count = max(1, min(_MAX_WINDOWS, len(windows), max_row_groups // needed))
    chosen = np.linspace(0, len(windows) - 1, count).round().astype(int)
    parts = [schedule.places(windows[index]) for index in chosen]
    places = Places(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    watched, counts = _strata(manifest)
    labels, positions = (
        np.full(len(places.row), -1, dtype=np.int64),
        np.zeros(len(places.row), dtype=np.int64),
    )
    for number, here, groups in _by_shard(schedule, places):
        shard = manifest.shards[number]
        starts = _starts(shard)
        known = np.full(shard.rows, -1, dtype=np.int64)
        path = storage.join(dataset, shard.path)
        for group, table in zip(groups, read_row_groups(path, groups, [LABEL], shard.sha256), strict=True):
            found = watched(table.column(LABEL))
            known[starts[group] : starts[group + 1]] = found
        labels[here] = known[places.row[here]]
        positions[here] = sum(s.rows for s in manifest.shards[:number]) + places.row[here]
    batches = [batch[batch >= 0] for batch in labels.reshape(-1, schedule.rows_per_step(0, 1))]
    return order_quality(batches, positions[labels >= 0], counts)


def _strata(manifest: Manifest) -> tuple[Callable[[pa.ChunkedArray], NDArray[np.int64]], list[int]]:
    """What is to be mixed: classes; of label sets, whether the class is there that is nearest to half the records.

    Returns:
        How to get it from a column of labels, as numbers, and how many records of the train split have each.
    """
    classes, task = pa.array(manifest.classes, pa.string()), task_of(manifest.task)
    rows = manifest.splits["train"].rows
    counts = [manifest.splits["train"].classes.get(name, 0) for name in manifest.classes]
    if task is MULTICLASS:
        return lambda column: task.targets(column, classes), counts
    middle = min(range(len(counts)), key=lambda c: abs(counts[c] - rows / 2))
    without, having = rows - counts[middle], counts[middle]
    return lambda column: task.targets(column, classes)[:, middle].astype(np.int64), [without, having]


def order_warning(order: OrderQuality, window_rows: int) -> str | None:
    """What to tell a user whose batches have less than 0.9 of the label entropy of batches drawn uniformly."""
    if order.label_mixing >= WELL_MIXED:
        return None
    return (
        f"warning: batches are badly mixed: their labels have {order.label_mixing:.0%} of the entropy of batches drawn "
        f"at random, which costs accuracy. Pack the source with `xmodal pack`, which shuffles it, or raise "
        f"pipeline.window_rows (now {window_rows})"
    )


def _by_shard(schedule: Schedule, places: Places) -> Iterator[tuple[int, NDArray[np.bool_], list[int]]]:
    """Each shard that is read: its number, which slots it fills, and its row groups that do."""
    for number in np.unique(places.shard[places.shard >= 0]):
        here = places.shard == number
        ends = _starts(schedule.manifest.shards[number])[1:]
        yield int(number), here, np.unique(np.searchsorted(ends, places.row[here], side="right")).tolist()


def _starts(shard: Shard) -> NDArray[np.int64]:
    """First row of each row group, and the number of rows."""
    return np.cumsum([0, *(group.rows for group in shard.row_groups)], dtype=np.int64)
