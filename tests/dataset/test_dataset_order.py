"""How well mixed an order is: sorted data scores low, shuffled data about 1, and the expectation is exact."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from xmodal_dist.dataset.order import expected_entropy, label_entropy, order_quality, rank_correlation

CLASSES, ROWS, BATCH = 10, 4000, 50
COUNTS = [ROWS // CLASSES] * CLASSES


def _quality(labels: NDArray[np.int64], order: NDArray[np.int64]) -> tuple[float, float]:
    """Of batches of 50 of rows that are read in this order."""
    batches = list(labels[order].reshape(-1, BATCH))
    found = order_quality(batches, order, COUNTS)
    assert (found.batches, found.records) == (ROWS // BATCH, ROWS)
    return found.label_mixing, found.rank_correlation


def _windows(rng: np.random.Generator, window: int) -> NDArray[np.int64]:
    """Row groups of 100 rows in random order, rows permuted inside windows of so many rows."""
    line = (rng.permutation(ROWS // 100)[:, None] * 100 + np.arange(100)).reshape(-1)
    return np.concatenate([rng.permutation(part) for part in np.split(line, ROWS // window)])


@given(seed=st.integers(0, 50))
def test_data_sorted_by_class_is_badly_mixed_and_the_wider_the_window_the_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(ROWS) // (ROWS // CLASSES)
    in_order = _quality(labels, np.arange(ROWS))
    assert in_order == (0.0, 1.0)
    narrow, wide, whole = (_quality(labels, _windows(rng, window))[0] for window in (100, 400, ROWS))
    assert narrow == 0.0 and 0.2 < wide < 0.8 and whole > 0.95


@given(seed=st.integers(0, 50), window=st.sampled_from([100, 500, 2000]))
def test_data_that_was_shuffled_when_packed_is_well_mixed(seed: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(ROWS) % CLASSES)
    mixing, correlation = _quality(labels, _windows(rng, window))
    assert mixing == pytest.approx(1.0, abs=0.02) and abs(correlation) < 0.6


@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(lambda c: 0 < sum(c) <= 9),
    size=st.integers(1, 9),
)
def test_the_expected_entropy_is_the_mean_over_all_batches(counts: list[int], size: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    size = min(size, len(labels))
    every = [label_entropy(labels[list(rows)]) for rows in itertools.combinations(range(len(labels)), size)]
    assert expected_entropy(counts, size) == pytest.approx(np.mean(every), abs=1e-12)


def test_the_expected_entropy_of_large_splits_is_finite_and_below_the_limit() -> None:
    counts = [3, 10_000, 10_000_000, 90_000_000]
    total = sum(counts)
    limit = -sum(c / total * math.log(c / total) for c in counts)
    small, large = (expected_entropy(counts, size) for size in (32, 4096))
    assert 0 < small < large < limit and large == pytest.approx(limit, rel=1e-2)
    assert expected_entropy([7], 5) == 0.0 and expected_entropy([2, 2], 99) == pytest.approx(math.log(2))


def test_one_class_or_nothing_counts_as_mixed() -> None:
    one = order_quality([np.zeros(4, dtype=np.int64)], np.arange(4), [4])
    assert one.label_mixing == 1.0
    nothing = order_quality([], np.zeros(0, dtype=np.int64), [4])
    assert nothing == (1.0, 0.0, 0, 0)


@given(
    values=st.lists(st.integers(-1000, 1000), unique=True, min_size=2, max_size=40), seed=st.integers(0, 9)
)
def test_rank_correlation_depends_on_ranks_alone(values: list[int], seed: int) -> None:
    a = np.array(values)
    assert rank_correlation(a, a**3) == pytest.approx(1.0) and rank_correlation(a, -a) == pytest.approx(-1.0)
    b = np.random.default_rng(seed).permutation(len(a))
    ranks = np.argsort(np.argsort(a))
    assert rank_correlation(a, b) == pytest.approx(np.corrcoef(ranks, b)[0, 1], abs=1e-9)
