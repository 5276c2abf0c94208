"""Metrics of label sets as pure functions of arrays: what :mod:`xmodal_dist.metrics` is to single labels.

Names follow scikit-learn. Legend: n rows, C classes; ``truth`` is [n, C] of 0 and 1. A class without a row that has it
says nothing about the model and is left out of macro means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_dist import metrics
from xmodal_dist.errors import DataError
from xmodal_dist.precision_recall import curve

__all__ = [
    "MIN_POSITIVES",
    "average_precisions",
    "best_thresholds",
    "from_outcomes",
    "mean_average_precision",
    "multilabel_metrics",
    "outcomes",
    "ranked_precision",
    "reliability_bins",
    "sureness",
]

MIN_POSITIVES = 10
"""Fewer rows of a class do not choose a threshold of its own."""

_EPSILON = float(np.finfo(np.float32).eps)
_MIN_THRESHOLD = 1e-4

_Array = NDArray[Any]


def ranked_precision(positives: _Array, negatives: _Array) -> NDArray[np.float64]:
    """Average precision of each class from counts by score: sum over scores of (R_k - R_(k-1)) P_k, falling scores.

    Counts of parts of the data add up to those of the whole, so this is exact on any number of workers.

    Args:
        positives: [C, K] rows that have the class, by score, rising.
        negatives: [C, K] rows that do not.

    Returns:
        [C]; NaN for a class without positives.
    """
    hits = positives[:, ::-1].cumsum(axis=1).astype(np.float64)
    said = hits + negatives[:, ::-1].cumsum(axis=1)
    gained = positives[:, ::-1] / np.maximum(hits[:, -1:], 1)
    found: NDArray[np.float64] = (gained * hits / np.maximum(said, 1)).sum(axis=1)
    return np.where(hits[:, -1] > 0, found, np.nan)


def average_precisions(truth: _Array, scores: _Array) -> NDArray[np.float64]:
    """Average precision of each class, [C]; NaN for one without positives. Equal scores count as one step."""
    found = [curve(truth[:, c] > 0, scores[:, c]) for c in range(truth.shape[1])]
    return np.array([np.nan if steps is None else steps.area for steps in found])


def mean_average_precision(truth: _Array, scores: _Array) -> float | None:
    """Mean over the classes with positives; None without any."""
    return _mean(average_precisions(truth, scores))


def outcomes(truth: _Array, predicted: _Array) -> NDArray[np.int64]:
    """[3, C] rows by class: true positives, rows that have it, rows that are said to have it."""
    has, said = truth > 0, predicted > 0
    return np.stack([(has & said).sum(axis=0), has.sum(axis=0), said.sum(axis=0)]).astype(np.int64)


def from_outcomes(counts: NDArray[np.int64]) -> dict[str, float]:
    """``micro_`` and ``macro_`` ``precision``, ``recall`` and ``f1`` of :func:`outcomes`, summed over any parts.

    Micro counts all (row, class) pairs together; macro means are over the classes that have rows. Where a denominator
    is 0, so is the figure.
    """
    supported = counts[1] > 0
    micro = _precision_recall_f1(counts.sum(axis=1, keepdims=True))
    names = ("precision", "recall", "f1")
    found = {f"micro_{name}": float(values[0]) for name, values in zip(names, micro, strict=True)}
    for name, values in zip(names, _precision_recall_f1(counts[:, supported]), strict=True):
        found[f"macro_{name}"] = float(values.mean()) if supported.any() else 0.0
    return found


def best_thresholds(truth: _Array, probabilities: _Array) -> NDArray[np.float64]:
    """The probability from which on each class is to be said, for the highest F1 on these rows, [C].

    It lies halfway between two probabilities that occur. A class with fewer than :data:`MIN_POSITIVES` rows takes the
    threshold that is best for all pairs together: its own would be chance.
    """
    common = _best_threshold(truth.ravel() > 0, probabilities.ravel())
    return np.array(
        [
            _best_threshold(truth[:, c] > 0, probabilities[:, c])
            if (truth[:, c] > 0).sum() >= MIN_POSITIVES
            else common
            for c in range(truth.shape[1])
        ]
    )


def reliability_bins(truth: _Array, probabilities: _Array) -> dict[str, list[Any]]:
    """Of all (row, class) pairs, the probability against the share that has the class, as in :mod:`metrics`."""
    return metrics.binned(probabilities.ravel(), truth.ravel() > 0)


def multilabel_metrics(
    truth: _Array, probabilities: _Array, thresholds: _Array, class_names: Sequence[str]
) -> dict[str, Any]:
    """Everything that label sets and probabilities determine.

    Args:
        truth: [n, C] of 0 and 1, n >= 1.
        probabilities: [n, C] in [0, 1].
        thresholds: [C], from which probability on a class is predicted.
        class_names: C names.

    Returns:
        JSON-able: ``rows``; ``cardinality`` and ``cardinality_predicted``, classes a row; ``mean_average_precision``;
        those of :func:`from_outcomes`; ``subset_accuracy``, the share of rows whose set is right as a whole;
        ``hamming_loss``, the share of pairs that are wrong; ``auroc`` (macro over the classes that have both);
        ``log_loss`` (nats a row: of the whole set, classes taken as independent), ``brier`` (squared distance a row),
        ``ece`` (of all pairs, :func:`reliability_bins`); and ``per_class``: ``average_precision``, ``precision``,
        ``recall``, ``f1``, ``auroc``, ``threshold``, ``support``. None where undefined.

    Raises:
        DataError: no rows.
    """
    if not len(truth):
        raise DataError("there is no labelled row to evaluate")
    predicted = probabilities >= thresholds
    counts = outcomes(truth, predicted)
    precisions = average_precisions(truth, probabilities)
    aurocs = [metrics.auroc(truth[:, c] > 0, probabilities[:, c]) for c in range(len(class_names))]
    known = [value for value in aurocs if value is not None]
    wrong = predicted != (truth > 0)
    return {
        "rows": len(truth),
        "cardinality": float(counts[1].sum() / len(truth)),
        "cardinality_predicted": float(counts[2].sum() / len(truth)),
        "mean_average_precision": _mean(precisions),
        **from_outcomes(counts),
        "subset_accuracy": float((~wrong.any(axis=1)).mean()),
        "hamming_loss": float(wrong.mean()),
        "auroc": float(np.mean(known)) if known else None,
        **sureness(truth, probabilities),
        "per_class": _per_class(counts, precisions, aurocs, thresholds, class_names),
    }


def sureness(truth: _Array, probabilities: _Array) -> dict[str, float]:
    """``log_loss``, ``brier`` and ``ece`` of :func:`multilabel_metrics`."""
    p = probabilities.astype(np.float64)
    of_truth = np.where(truth > 0, p, 1 - p)
    return {
        "log_loss": float(-np.log(np.clip(of_truth, _EPSILON, 1.0)).sum(axis=1).mean()),
        "brier": float(((1 - of_truth) ** 2).sum(axis=1).mean()),
        "ece": metrics.calibration_error(reliability_bins(truth, p)),
    }


def _per_class(
    counts: NDArray[np.int64],
    precisions: _Array,
    aurocs: Sequence[float | None],
    thresholds: _Array,
    class_names: Sequence[str],
) -> dict[str, dict[str, float | int | None]]:
    precision, recall, f1 = _precision_recall_f1(counts)
    return {
        name: {
            "average_precision": float(precisions[c]) if counts[1, c] else None,
            "precision": float(precision[c]) if counts[1:, c].any() else None,
            "recall": float(recall[c]) if counts[1, c] else None,
            "f1": float(f1[c]) if counts[1, c] else None,
            "auroc": aurocs[c],
            "threshold": float(thresholds[c]),
            "support": int(counts[1, c]),
        }
        for c, name in enumerate(class_names)
    }


def _best_threshold(has: NDArray[np.bool_], probabilities: _Array) -> float:
    if not has.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    scores, hits = probabilities[order], has[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    last = np.append(scores[1:] < scores[:-1], True)  # a threshold cannot part equal scores
    best = int(np.argmax(np.where(last, f1, -1.0)))
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    return max(float(scores[best] + below) / 2, _MIN_THRESHOLD)


def _precision_recall_f1(counts: NDArray[np.int64]) -> tuple[_Array, _Array, _Array]:
    """Each [C] of [3, C]; 0 where the denominator is."""
    hits, has, said = counts.astype(np.float64)
    return hits / np.maximum(said, 1), hits / np.maximum(has, 1), 2 * hits / np.maximum(has + said, 1)


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
