from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as theirs

from xmodal_dist import multilabel
from xmodal_dist.errors import DataError

NAMES = ["a", "b", "c", "d", "e"]


def _some(rows: int = 200, seed: int = 0) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    truth = (rng.random((rows, 5)) < [0.5, 0.3, 0.1, 0.04, 0.0]).astype(np.int8)
    scores = truth * 1.2 + rng.normal(size=truth.shape) - 1
    return truth, (1 / (1 + np.exp(-scores))).round(2)  # some are equal


def test_figures_are_those_of_scikit_learn() -> None:
    truth, p = _some()
    thresholds = np.array([0.5, 0.4, 0.3, 0.2, 0.5])
    found = multilabel.multilabel_metrics(truth, p, thresholds, NAMES)
    predicted, seen = (p >= thresholds).astype(int), truth.any(axis=0)
    for average in ("micro", "macro"):
        of = (truth, predicted) if average == "micro" else (truth[:, seen], predicted[:, seen])
        for name, function in (
            ("precision", theirs.precision_score),
            ("recall", theirs.recall_score),
            ("f1", theirs.f1_score),
        ):
            expected = function(*of, average=average, zero_division=0)
            assert found[f"{average}_{name}"] == pytest.approx(expected)
    assert found["mean_average_precision"] == pytest.approx(
        theirs.average_precision_score(truth[:, seen], p[:, seen], average="macro")
    )
    assert found["subset_accuracy"] == pytest.approx(theirs.accuracy_score(truth, predicted))
    assert found["hamming_loss"] == pytest.approx(theirs.hamming_loss(truth, predicted))
    pairs = theirs.log_loss(truth.ravel(), p.ravel().clip(1e-7, 1 - 1e-7))
    assert found["log_loss"] == pytest.approx(5 * pairs, rel=1e-5)
    assert found["brier"] == pytest.approx(5 * theirs.brier_score_loss(truth.ravel(), p.ravel()))
    per_class = found["per_class"]
    assert per_class["a"]["auroc"] == pytest.approx(theirs.roc_auc_score(truth[:, 0], p[:, 0]))
    assert per_class["e"]["support"] == 0
    assert [per_class["e"][name] for name in ("average_precision", "recall", "f1", "auroc")] == [None] * 4


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), min_size=1, max_size=60), st.integers(0, 60))
def test_average_precision_from_counts_of_any_parts_is_that_of_all_rows(
    rows: list[tuple[bool, int]], cut: int
) -> None:
    truth, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])

    def counts(which: slice, has: bool) -> NDArray[np.int64]:
        return np.bincount(scores[which][truth[which] == has], minlength=8)[None]

    parts = (slice(0, cut), slice(cut, None))
    found = multilabel.ranked_precision(*(sum(counts(part, has) for part in parts) for has in (True, False)))
    if truth.any():
        assert found[0] == pytest.approx(theirs.average_precision_score(truth, scores))
    else:
        assert np.isnan(found[0])


@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_has_a_better_f1(seed: int) -> None:
    truth, p = _some(80, seed)
    found = multilabel.best_thresholds(truth, p)
    own = truth.sum(axis=0) >= multilabel.MIN_POSITIVES
    for c in np.flatnonzero(own):
        reached = theirs.f1_score(truth[:, c], p[:, c] >= found[c])
        tried = [theirs.f1_score(truth[:, c], p[:, c] >= t) for t in np.unique(p[:, c])]
        assert reached == pytest.approx(max(tried))
    common = found[~own]
    assert (common == common[0]).all()
    everywhere = theirs.f1_score(truth.ravel(), p.ravel() >= common[0])
    assert everywhere >= theirs.f1_score(truth.ravel(), p.ravel() >= 0.5)


def test_without_a_class_anywhere_thresholds_stay_in_the_middle() -> None:
    assert (multilabel.best_thresholds(np.zeros((3, 2)), np.full((3, 2), 0.2)) == 0.5).all()


def test_a_perfect_and_a_calibrated_model() -> None:
    truth, _ = _some()
    found = multilabel.multilabel_metrics(truth, truth.astype(float), np.full(5, 0.5), NAMES)
    assert found["mean_average_precision"] == found["subset_accuracy"] == found["micro_f1"] == 1
    assert found["ece"] == found["hamming_loss"] == found["log_loss"] == 0
    constant = np.broadcast_to(truth.mean(axis=0), truth.shape)
    assert multilabel.sureness(truth, constant)["ece"] == pytest.approx(0, abs=1e-9)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no labelled row"):
        multilabel.multilabel_metrics(np.zeros((0, 5)), np.zeros((0, 5)), np.zeros(5), NAMES)
