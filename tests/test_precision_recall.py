"""Precision against recall: the area is average precision, however a curve is thinned or averaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from xmodal_dist.precision_recall import (
    MAX_CURVES,
    MAX_POINTS,
    curve,
    mean_curve,
    precision_recall,
    thinned,
)


def _area(found):
    return float((np.diff(found["recall"], prepend=0.0) * found["precision"]).sum())


@settings(max_examples=60)
@given(st.integers(1, 3000), st.floats(0.02, 0.9), st.sampled_from([3, 50, 10**6]), st.integers(0, 99))
def test_area_is_the_average_precision_of_scikit_learn(rows, share, levels, seed):
    rng = np.random.default_rng(seed)
    positive = rng.random(rows) < share
    positive[0] = True
    scores = (np.floor((rng.random(rows) + 0.3 * positive) * levels) / levels).astype(np.float32)
    found = curve(positive, scores)
    expected = average_precision_score(positive, scores)
    assert found.area == pytest.approx(expected, abs=1e-12)
    assert (np.diff(found.recall) > 0).all() and found.recall[-1] == 1
    few = thinned(found, 20)
    assert len(few.recall) <= 20 and few.area == pytest.approx(expected, abs=1e-12)
    assert few.precision.min() >= found.precision.min() - 1e-9 and few.precision.max() <= 1 + 1e-9


def test_mean_curve_has_the_mean_area():
    rng = np.random.default_rng(0)
    curves = [curve(rng.random(n) < 0.4, rng.random(n)) for n in (5, 40, 700)]
    mean = mean_curve(curves)
    assert mean.area == pytest.approx(np.mean([c.area for c in curves]), abs=1e-12)
    assert mean.recall[-1] == 1


def test_what_is_kept_for_a_page_is_bounded_and_exact():
    rng = np.random.default_rng(1)
    names = [f"class {c}" for c in range(60)]
    truth = rng.integers(0, 59, 9000)  # the last class has no row
    scores = rng.random((9000, 60)) + 0.5 * np.eye(60)[truth]
    positive = np.arange(60) == truth[:, None]
    precisions, found = precision_recall(positive, scores, names)
    json.dumps(found, allow_nan=False)
    assert precisions["class 59"] is None and list(precisions) == names
    assert len(found["classes"]) == MAX_CURVES
    kept = [c["average_precision"] for c in found["classes"].values()]
    assert kept == sorted(kept) == sorted(p for p in precisions.values() if p is not None)[:MAX_CURVES]
    for one in (found["micro"], found["macro"], *found["classes"].values()):
        assert len(one["recall"]) <= MAX_POINTS
        assert _area(one) == pytest.approx(one["average_precision"], abs=1e-9)
    for average, classes in (("micro", slice(None)), ("macro", slice(59))):
        expected = average_precision_score(positive[:, classes], scores[:, classes], average=average)
        assert found[average]["average_precision"] == pytest.approx(expected, abs=1e-9)


def test_without_positive_rows_there_is_no_curve():
    assert curve(np.zeros(3, dtype=bool), np.ones(3)) is None
    precisions, found = precision_recall(np.zeros((3, 1), dtype=bool), np.ones((3, 1)), ["a"])
    assert precisions == {"a": None} and found == {"micro": None, "macro": None, "classes": {}}
