"""Intervals and tests: against known values, other implementations, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from xmodal_dist import metrics
from xmodal_dist.baselines.statistics import bootstrap_intervals, holm, paired_test

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def _right(only_first: int, only_second: int, both: int, neither: int = 0):
    pairs = [(1, 0)] * only_first + [(0, 1)] * only_second + [(1, 1)] * both + [(0, 0)] * neither
    first, second = np.array(pairs, dtype=bool).T
    return first, second


def test_mid_p_of_known_counts():
    # 2 P(X <= 1) - P(X = 1) of a fair coin thrown 10 times: (2 * 11 - 10) / 1024.
    found = paired_test(*_right(9, 1, 30))
    assert found.p == pytest.approx(12 / 1024)
    assert (found.only_first, found.only_second, found.difference) == (9, 1, 8 / 40)
    assert paired_test(*_right(0, 0, 5)).p == 1.0
    assert paired_test(*_right(7, 7, 5)).p == pytest.approx(1.0)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 50))
def test_paired_test_is_symmetric_and_never_more_timid_than_exact(first, second, both):
    one, other = paired_test(*_right(first, second, both)), paired_test(*_right(second, first, both))
    assert one.p == other.p and one.difference == -other.difference
    assert 0 < one.p <= 1
    if first + second:
        assert one.p <= binomtest(first, first + second).pvalue + 1e-12


def test_interval_of_a_difference_holds_it():
    found = paired_test(*_right(30, 10, 150, 10))
    assert found.interval[0] < found.difference < found.interval[1]
    # The normal approximation: deviation sqrt(b + c - (b - c)^2 / n) / n.
    deviation = np.sqrt(40 - 20**2 / 200) / 200
    assert found.interval == pytest.approx((0.1 - 1.96 * deviation, 0.1 + 1.96 * deviation), abs=0.006)


def test_bootstrap_over_cells_is_the_bootstrap_over_rows():
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 4, 250)
    predicted = np.where(rng.random(250) < 0.7, truth, rng.integers(0, 4, 250))
    found = bootstrap_intervals(truth, predicted, 4, resamples=4000)
    drawn = [
        metrics.from_confusion(metrics.confusion_matrix(truth[rows], predicted[rows], 4))
        for rows in rng.integers(0, 250, (4000, 250))
    ]
    for name, interval in found.items():
        expected = np.quantile([values[name] for values in drawn], [0.025, 0.975])
        assert interval == pytest.approx(tuple(expected), abs=0.008), name


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 1000))
def test_bootstrap_knows_neither_order_nor_absent_classes(rows, num_classes, seed):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, num_classes, (2, rows))
    found = bootstrap_intervals(truth, predicted, num_classes, resamples=200)
    order = rng.permutation(rows)
    assert found == bootstrap_intervals(truth[order], predicted[order], num_classes, resamples=200)
    assert found == bootstrap_intervals(truth, predicted, num_classes, resamples=200)
    assert all(0 <= low <= high <= 1 for low, high in found.values())


def test_bootstrap_of_a_perfect_model_has_no_width():
    truth = np.arange(30) % 3
    assert set(bootstrap_intervals(truth, truth, 3).values()) == {(1.0, 1.0)}


def test_holm_of_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(P_VALUES)
def test_holm_keeps_order_and_stays_between_p_and_bonferroni(p_values):
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1.0, p * len(p_values)) + 1e-15
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
