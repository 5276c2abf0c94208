"""Metrics: equal to scikit-learn where it defines them, and sound where it does not."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.errors import DataError
from xmodal_dist.metrics import (
    classification_metrics,
    confusion_matrix,
    expected_calibration_error,
    from_confusion,
    log_loss,
    reliability_bins,
)

SCALARS = [
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "log_loss",
    "ece",
    "brier",
]


def _data(seed: int, rows: int, classes: int, skill: float = 1.5):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) + skill * np.eye(classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, probabilities.astype(np.float32)


def _names(classes: int) -> list[str]:
    return [f"c{i}" for i in range(classes)]


data = st.builds(_data, seed=st.integers(0, 10_000), rows=st.integers(1, 60), classes=st.integers(2, 6))


@settings(max_examples=60, deadline=None)
@given(data)
def test_equals_sklearn(drawn):
    truth, probabilities = drawn
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    present = np.unique(truth)
    ours = classification_metrics(truth, probabilities, _names(classes))
    kwargs = {"labels": present, "average": "macro", "zero_division": 0}
    assert ours["rows"] == len(truth)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert ours["macro_precision"] == pytest.approx(sk.precision_score(truth, predicted, **kwargs))
    assert ours["macro_recall"] == pytest.approx(sk.recall_score(truth, predicted, **kwargs))
    assert ours["balanced_accuracy"] == ours["macro_recall"]
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(truth, predicted, **kwargs))
    assert ours["confusion_matrix"] == sk.confusion_matrix(truth, predicted, labels=range(classes)).tolist()
    expected = sk.brier_score_loss(truth, probabilities, labels=range(classes), scale_by_half=False)
    assert ours["brier"] == pytest.approx(expected, abs=1e-5)
    assert ours["log_loss"] == pytest.approx(
        sk.log_loss(truth, probabilities, labels=range(classes)), abs=1e-5
    )
    assert [v["support"] for v in ours["per_class"].values()] == np.bincount(
        truth, minlength=classes
    ).tolist()


def test_auroc_equals_sklearn_one_vs_rest():
    truth, probabilities = _data(3, 200, 4)
    ours = classification_metrics(truth, probabilities, _names(4))
    float64 = probabilities.astype(np.float64)
    expected = sk.roc_auc_score(truth, float64 / float64.sum(axis=1, keepdims=True), multi_class="ovr")
    assert ours["auroc"] == pytest.approx(expected, abs=1e-6)
    binary_truth, binary = _data(4, 100, 2)
    assert classification_metrics(binary_truth, binary, _names(2))["auroc"] == pytest.approx(
        sk.roc_auc_score(binary_truth, binary[:, 1]), abs=1e-3
    )


@settings(max_examples=40, deadline=None)
@given(data, st.integers(0, 1000))
def test_row_order_does_not_matter(drawn, seed):
    truth, probabilities = drawn
    names = _names(probabilities.shape[1])
    order = np.random.default_rng(seed).permutation(len(truth))
    one = classification_metrics(truth, probabilities, names)
    other = classification_metrics(truth[order], probabilities[order], names)
    assert one["confusion_matrix"] == other["confusion_matrix"]
    for key in SCALARS:
        assert one[key] == pytest.approx(other[key])


@settings(max_examples=40, deadline=None)
@given(data, st.integers(0, 1000))
def test_renaming_the_classes_does_not_change_the_means(drawn, seed):
    truth, probabilities = drawn
    classes = probabilities.shape[1]
    order = np.random.default_rng(seed).permutation(classes)
    one = classification_metrics(truth, probabilities, _names(classes))
    other = classification_metrics(np.argsort(order)[truth], probabilities[:, order], _names(classes))
    for key in SCALARS:
        assert one[key] == pytest.approx(other[key])


@settings(max_examples=60, deadline=None)
@given(data)
def test_in_range_and_writable_as_json(drawn):
    truth, probabilities = drawn
    ours = classification_metrics(truth, probabilities, _names(probabilities.shape[1]))
    json.dumps(ours, allow_nan=False)
    for key in SCALARS:
        assert type(ours[key]) is float
        assert ours[key] >= 0
    for key in set(SCALARS) - {"log_loss", "brier"}:
        assert ours[key] <= 1 + 1e-12


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_perfect_predictions(labels):
    truth = np.array(labels)
    ours = classification_metrics(truth, np.eye(5, dtype=np.float32)[truth], _names(5))
    for key in ("accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1"):
        assert ours[key] == 1.0
    assert ours["log_loss"] == ours["ece"] == ours["brier"] == 0.0
    assert ours["auroc"] == (1.0 if len(set(labels)) > 1 else None)


@settings(max_examples=40, deadline=None)
@given(data, st.integers(1, 5))
def test_confusion_matrices_of_parts_add_up(drawn, parts):
    truth, probabilities = drawn
    classes, predicted = probabilities.shape[1], probabilities.argmax(axis=1)
    total = sum(confusion_matrix(truth[i::parts], predicted[i::parts], classes) for i in range(parts))
    assert total.dtype == np.int64
    assert (total == confusion_matrix(truth, predicted, classes)).all()
    assert total.sum() == len(truth)


def test_weights_and_padding():
    truth, predicted = np.array([0, 1, -1, 7]), np.array([0, 0, 0, 1])
    matrix = confusion_matrix(truth, predicted, 2, np.array([1.0, 2.5, 0.0, 0.0], dtype=np.float32))
    assert matrix.dtype == np.float64
    assert matrix.tolist() == [[1.0, 0.0], [2.5, 0.0]]
    with pytest.raises(ValueError, match=r"truth must be in \[0, 2\), found -1 to 7"):
        confusion_matrix(truth, predicted, 2)


def test_class_without_rows_is_left_out_of_the_means():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 4]])
    assert from_confusion(matrix)["macro_recall"] == pytest.approx((0.75 + 1) / 2)
    truth = np.array([0, 0, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8]])
    ours = classification_metrics(truth, probabilities, ["a", "b", "c"])
    assert ours["per_class"]["b"] == {
        "precision": 0.0,
        "recall": None,
        "f1": None,
        "support": 0,
        "auroc": None,
    }
    assert ours["auroc"] == pytest.approx((0.75 + 1) / 2)
    never = classification_metrics(truth[:1], probabilities[:1], ["a", "b", "c"])
    assert never["per_class"]["c"]["precision"] is None
    assert never["auroc"] is None


def test_supported_class_that_is_never_predicted_counts_as_zero():
    ours = classification_metrics(np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]), ["a", "b"])
    assert ours["per_class"]["b"]["precision"] == ours["per_class"]["b"]["f1"] == 0.0
    assert ours["macro_precision"] == pytest.approx(0.25)


def test_calibration_error_by_hand():
    truth = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    # three rows in one bin: confidence 0.9, accuracy 2/3; one row alone: confidence 0.6, accuracy 1
    assert expected_calibration_error(truth, probabilities) == pytest.approx(
        0.75 * (0.9 - 2 / 3) + 0.25 * 0.4
    )
    bins = reliability_bins(truth, probabilities)
    assert len(bins["rows"]) == 15 and sum(bins["rows"]) == 4
    assert [a for a in bins["accuracy"] if a is not None] == pytest.approx([1.0, 2 / 3])


def test_log_loss_of_a_sure_error_is_finite():
    assert log_loss(np.array([1]), np.array([[1.0, 0.0]])) == pytest.approx(
        -math.log(np.finfo(np.float32).eps)
    )


def test_unusable_input_is_refused():
    with pytest.raises(DataError, match="no labelled row"):
        classification_metrics(np.array([], dtype=int), np.zeros((0, 2)), ["a", "b"])
    with pytest.raises(DataError, match="no labelled row"):
        from_confusion(np.zeros((2, 2)))
    with pytest.raises(DataError, match="1 of 2 rows have probabilities that are not finite"):
        classification_metrics(np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]]), ["a", "b"])
    with pytest.raises(ValueError, match="must be"):
        classification_metrics(np.array([0]), np.array([[0.5, 0.5]]), ["a", "b", "c"])
