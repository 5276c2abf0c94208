"""Classification metrics as pure functions of arrays; results are plain Python numbers, never NaN.

Names follow scikit-learn. It knows nothing of datasets, models or files: training, evaluation and baselines
share it, so one number means the same thing everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_dist.errors import DataError

__all__ = [
    "NUM_BINS",
    "all_subsets",
    "auroc",
    "binned",
    "calibration_error",
    "classification_metrics",
    "confusion_matrix",
    "expected_calibration_error",
    "from_confusion",
    "log_loss",
    "per_class_metrics",
    "reliability_bins",
    "withheld_accuracy",
]

NUM_BINS = 15
"""Equal-width confidence bins of the calibration error, as in Guo et al. 2017."""

_WITHHELD = tuple(tenth / 10 for tenth in range(10))
_EPSILON = float(np.finfo(np.float32).eps)

_Ints = NDArray[np.integer[Any]]
_Floats = NDArray[np.floating[Any]]


def confusion_matrix(
    truth: _Ints, predicted: _Ints, num_classes: int, weights: NDArray[np.generic] | None = None
) -> NDArray[Any]:
    """Count rows by true and predicted class; matrices of parts of the data add up to that of the whole.

    Args:
        truth: [n] class index; any value where the weight is 0 (padding, no label).
        predicted: [n] class index; any value where the weight is 0.
        num_classes: C.
        weights: [n] weight of each row; None counts each row once.

    Returns:
        [C, C], rows are true classes, columns predicted ones: int64 counts, or float64 sums of ``weights``.

    Raises:
        ValueError: a row that counts has a class outside [0, C), or the lengths differ.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"truth {truth.shape} and predicted {predicted.shape} must both be [n]")
    if weights is not None:
        weights = np.asarray(weights, dtype=np.float64)
        used = weights != 0
        truth, predicted, weights = truth[used], predicted[used], weights[used]
    for name, values in (("truth", truth), ("predicted", predicted)):
        if len(values) and (values.min() < 0 or values.max() >= num_classes):
            raise ValueError(f"{name} must be in [0, {num_classes}), found {values.min()} to {values.max()}")
    cells = truth.astype(np.int64) * num_classes + predicted.astype(np.int64)
    counts = np.bincount(cells, weights, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes).astype(np.int64 if weights is None else np.float64)


def from_confusion(matrix: NDArray[Any]) -> dict[str, float]:
    """Metrics that a confusion matrix alone determines, for example one summed over all workers.

    Macro means are over the classes that have support (rows of that true class): a class without any says
    nothing about the model. A supported class that is never predicted has precision 0 and F1 0. Balanced
    accuracy equals macro recall by definition; both names are given because both are looked for.

    Args:
        matrix: [C, C] counts or weights, rows are true classes.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``macro_precision``, ``macro_recall``, ``macro_f1``, each in [0,
        1].

    Raises:
        DataError: the matrix is empty.
    """
    precision, recall, f1 = _precision_recall_f1(matrix)
    supported = matrix.sum(axis=1) > 0
    if not supported.any():
        raise DataError("there is no labelled row to evaluate: the confusion matrix is empty")
    macro_recall = float(recall[supported].mean())
    return {
        "accuracy": float(np.trace(matrix) / matrix.sum()),
        "balanced_accuracy": macro_recall,
        "macro_precision": float(np.nan_to_num(precision[supported]).mean()),
        "macro_recall": macro_recall,
        "macro_f1": float(f1[supported].mean()),
    }


def per_class_metrics(
    truth: _Ints, probabilities: _Floats, matrix: NDArray[Any], class_names: Sequence[str]
) -> dict[str, dict[str, float | int | None]]:
    """Metrics of each class against the rest, by class name.

    Args:
        truth: [n] class index.
        probabilities: [n, C].
        matrix: [C, C] confusion matrix of the same rows.
        class_names: C names.

    Returns:
        Name -> ``precision``, ``recall``, ``f1``, ``support`` (rows of that class), ``auroc``. None where
        undefined: precision of a class neither present nor predicted, recall and F1 without support, AUROC
        without both positives and negatives.
    """
    precision, recall, f1 = _precision_recall_f1(matrix)
    support = matrix.sum(axis=1)
    return {
        name: {
            "precision": float(np.nan_to_num(precision[c])) if support[c] else _number(precision[c]),
            "recall": _number(recall[c]),
            "f1": float(f1[c]) if support[c] else None,
            "support": int(support[c]),
            "auroc": auroc(truth == c, probabilities[:, c]),
        }
        for c, name in enumerate(class_names)
    }


def classification_metrics(
    truth: _Ints, probabilities: _Floats, class_names: Sequence[str]
) -> dict[str, Any]:
    """Everything that labels and probabilities determine; the predicted class is the most probable one.

    Args:
        truth: [n] class index, n >= 1.
        probabilities: [n, C], finite, each row a distribution.
        class_names: C names, in index order.

    Returns:
        JSON-able: ``rows``, those of :func:`from_confusion`, ``auroc`` (one-vs-rest, macro over the classes
        that have both positives and negatives; None if no class has), ``log_loss`` (nats), ``ece``
        (:data:`NUM_BINS` bins), ``brier`` (Brier 1950: squared distance summed over classes, in [0, 2]),
        ``per_class`` (:func:`per_class_metrics`) and ``confusion_matrix`` (list of rows, one per true class).

    Raises:
        DataError: no rows, or probabilities that are not finite.
        ValueError: shapes that do not fit.
    """
    truth, probabilities = _checked(truth, probabilities, len(class_names))
    num_classes = len(class_names)
    matrix = confusion_matrix(truth, probabilities.argmax(axis=1), num_classes)
    per_class = per_class_metrics(truth, probabilities, matrix, class_names)
    aurocs = [float(v["auroc"]) for v in per_class.values() if v["auroc"] is not None]
    target = np.eye(num_classes, dtype=np.float64)[truth]
    return {
        "rows": len(truth),
        **from_confusion(matrix),
        "auroc": float(np.mean(aurocs)) if aurocs else None,
        "log_loss": log_loss(truth, probabilities),
        "ece": expected_calibration_error(truth, probabilities),
        "brier": float(((probabilities - target) ** 2).sum(axis=1).mean()),
        "per_class": per_class,
        "confusion_matrix": matrix.tolist(),
    }


def log_loss(truth: _Ints, probabilities: _Floats) -> float:
    """Mean negative natural logarithm of the true class's probability, clipped at float32's epsilon."""
    true_class = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return float(-np.log(np.clip(true_class, _EPSILON, 1.0)).mean()) + 0.0


def reliability_bins(truth: _Ints, probabilities: _Floats, num_bins: int = NUM_BINS) -> dict[str, list[Any]]:
    """Confidence against accuracy: the data of a reliability diagram.

    Bin b holds rows with confidence (probability of the predicted class) in (b / num_bins, (b + 1) /
    num_bins].

    Returns:
        ``rows`` per bin, and their mean ``confidence`` and ``accuracy`` (None for an empty bin).
    """
    return binned(probabilities.max(axis=1), probabilities.argmax(axis=1) == truth, num_bins)


def binned(confidence: _Floats, correct: NDArray[np.bool_], num_bins: int = NUM_BINS) -> dict[str, list[Any]]:
    """:func:`reliability_bins` of n claims: how sure each is, in [0, 1], and whether it is so."""
    confidence, correct = confidence.astype(np.float64), correct.astype(np.float64)
    bins = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    rows = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bins, confidence, num_bins) / rows
        accuracy = np.bincount(bins, correct, num_bins) / rows
    return {
        "rows": rows.tolist(),
        "confidence": [_number(v) for v in mean_confidence],
        "accuracy": [_number(v) for v in accuracy],
    }


def expected_calibration_error(truth: _Ints, probabilities: _Floats, num_bins: int = NUM_BINS) -> float:
    """Mean distance of confidence and accuracy over bins, weighted by rows; in [0, 1].

    Algorithm: Guo et al. 2017, "On Calibration of Modern Neural Networks", equal-width bins.
    """
    return calibration_error(reliability_bins(truth, probabilities, num_bins))


def calibration_error(bins: Mapping[str, Sequence[Any]]) -> float:
    """The expected calibration error of some :func:`reliability_bins`."""
    gaps = (
        rows * abs(confidence - accuracy)
        for rows, confidence, accuracy in zip(bins["rows"], bins["confidence"], bins["accuracy"], strict=True)
        if rows
    )
    return float(sum(gaps) / sum(bins["rows"]))


def withheld_accuracy(
    hits: Mapping[frozenset[str], NDArray[np.bool_]], present: Sequence[frozenset[str]]
) -> list[dict[str, float]]:
    """Accuracy to be expected when each field that a record has is withheld by chance, exactly.

    A record of m fields is left with a given k of them with probability p^(m - k) (1 - p)^k. The hits with every subset
    shown are summed with these weights; nothing is drawn.

    Args:
        hits: by the fields shown, [n]: whether the record is classified right by those of them that it has. All of
            :func:`all_subsets` of ``present``.
        present: the fields that each of the n records has.

    Returns:
        ``share`` p, from 0 to 0.9 in tenths, and ``accuracy``.
    """
    sizes = np.arange(max(map(len, present)) + 1)
    right = np.zeros((len(sizes), len(sizes)))  # hits by fields that a record has, and fields left to it
    for fields in set(present):
        rows = np.array([fields == own for own in present])
        for left in _subsets_of(fields):
            right[len(fields), len(left)] += hits[left][rows].sum()
    gone = np.maximum(sizes[:, None] - sizes, 0)
    return [
        {"share": p, "accuracy": float((right * p**gone * (1 - p) ** sizes).sum() / len(present))}
        for p in _WITHHELD
    ]


def all_subsets(present: Iterable[frozenset[str]]) -> set[frozenset[str]]:
    """Every subset, the empty one included, of any of these sets."""
    return {left for fields in set(present) for left in _subsets_of(fields)}


def _subsets_of(fields: frozenset[str]) -> Iterator[frozenset[str]]:
    for size in range(len(fields) + 1):
        yield from map(frozenset, combinations(sorted(fields), size))


def _precision_recall_f1(matrix: NDArray[Any]) -> tuple[_Floats, _Floats, _Floats]:
    """Each [C]; NaN where the denominator is 0 (never predicted, no support, neither)."""
    hits = np.diag(matrix).astype(np.float64)
    support, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return hits / predicted, hits / support, 2 * hits / (support + predicted)


def auroc(positive: NDArray[np.bool_], scores: _Floats) -> float | None:
    """Area under the ROC curve; None without both positives and negatives."""
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, scores))


def _checked(truth: _Ints, probabilities: _Floats, num_classes: int) -> tuple[_Ints, _Floats]:
    truth, probabilities = np.asarray(truth), np.asarray(probabilities)
    if probabilities.shape != (len(truth), num_classes):
        raise ValueError(f"probabilities {probabilities.shape} must be [{len(truth)}, {num_classes}]")
    if len(truth) == 0:
        raise DataError("there is no labelled row to evaluate")
    bad = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(truth)} rows have probabilities that are not finite: the model has diverged; "
            "train again with a lower learning rate"
        )
    return truth, probabilities.astype(np.float64)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
