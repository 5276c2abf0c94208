"""Evaluation of predictions of one class a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist import metrics
from xmodal_dist.calibrate import NOTHING, cutoffs, softmax
from xmodal_dist.errors import DataError
from xmodal_dist.evaluate.predictions import (
    Evaluation,
    Mistake,
    check_columns,
    fields_present,
    fusion,
    subset_columns,
    subsets,
    unknown_labels,
    vectors,
)
from xmodal_dist.precision_recall import precision_recall

__all__ = ["evaluate_predictions"]

_LOGITS = "logits"


def evaluate_predictions(
    predictions: pa.Table,
    class_names: Sequence[str],
    num_worst: int = 20,
    thresholds: Mapping[float, float | None] | None = None,
) -> Evaluation:
    """Evaluate predictions of labelled records.

    Args:
        predictions: columns ``id`` (string), ``truth`` and ``label`` (class names), ``probabilities``
            (fixed-size list of C; ``label`` is a class of the highest), ``modalities`` (list of the fields
            that the record has) and any number of columns :func:`subset_column`, like ``probabilities``; ``logits``,
            if the probabilities are not their softmax.
        class_names: the C classes, in the order of the probabilities.
        num_worst: at most so many errors in :attr:`Evaluation.worst`.
        thresholds: by target precision, the probability below which the model is to keep silent, as other records chose
            it; None where it is out of reach.

    Raises:
        DataError: no rows, a missing column, a true label that the classes do not know, or columns that
            contradict each other.
    """
    check_columns(predictions, "label")
    truth = _class_indices(predictions.column("truth"), class_names)
    probabilities = vectors(predictions, "probabilities", len(class_names))
    result = metrics.classification_metrics(truth, probabilities, class_names)
    _check_labels(predictions, probabilities, class_names)
    per_subset = _per_subset(predictions, truth, class_names)
    positive = np.arange(len(class_names)) == truth[:, None]
    precisions, precision_curves = precision_recall(positive, probabilities, class_names)
    raw = None
    if _LOGITS in predictions.column_names:
        raw = softmax(vectors(predictions, _LOGITS, len(class_names)))
    return Evaluation(
        metrics={
            **result,
            **_average_precision(result["per_class"], precisions),
            "per_subset": per_subset,
            **fusion("accuracy", result["accuracy"], per_subset),
            "withheld": _withheld(predictions, truth, len(class_names)),
            "uncalibrated": _uncalibrated(truth, raw),
            "abstention": _abstention(truth, probabilities, thresholds or {}),
        },
        worst=_worst(predictions.column("id"), truth, probabilities, class_names, num_worst),
        curves={
            "reliability": metrics.reliability_bins(truth, probabilities),
            "reliability_uncalibrated": None if raw is None else metrics.reliability_bins(truth, raw),
            "precision_recall": precision_curves,
            "abstention": _abstention_curve(truth, probabilities),
        },
    )


def _average_precision(
    per_class: Mapping[str, Mapping[str, Any]], precisions: Mapping[str, float | None]
) -> dict[str, Any]:
    defined = [value for value in precisions.values() if value is not None]
    return {
        "average_precision": float(np.mean(defined)),
        "per_class": {n: {**v, "average_precision": precisions[n]} for n, v in per_class.items()},
    }


def _withheld(
    predictions: pa.Table, truth: NDArray[np.int64], num_classes: int
) -> list[dict[str, float]] | None:
    """None where the columns do not say what every subset of a record's fields gives."""
    hits = {}
    for name, column in subset_columns(predictions).items():
        predicted = vectors(predictions, column, num_classes).argmax(axis=1)
        hits[frozenset(() if name == NOTHING else name.split("+"))] = predicted == truth
    present = fields_present(predictions)
    if not metrics.all_subsets(present) <= hits.keys():
        return None
    return metrics.withheld_accuracy(hits, present)


def _uncalibrated(truth: NDArray[np.int64], raw: NDArray[np.floating[Any]] | None) -> dict[str, float] | None:
    if raw is None:
        return None
    return {
        "ece": metrics.expected_calibration_error(truth, raw),
        "log_loss": metrics.log_loss(truth, raw),
    }


def _abstention(
    truth: NDArray[np.int64],
    probabilities: NDArray[np.floating[Any]],
    thresholds: Mapping[float, float | None],
) -> list[dict[str, float | None]]:
    """What comes of the thresholds on these records."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    rows: list[dict[str, float | None]] = []
    for target, threshold in thresholds.items():
        row: dict[str, float | None] = {"target_precision": target, "threshold": threshold}
        if threshold is not None:
            sure = confidence >= threshold
            row |= {
                "coverage": float(sure.mean()),
                "precision": float(right[sure].mean()) if sure.any() else None,
            }
        rows.append({"coverage": None, "precision": None, **row})
    return rows


def _abstention_curve(
    truth: NDArray[np.int64], probabilities: NDArray[np.floating[Any]]
) -> dict[str, list[float]]:
    found = cutoffs(probabilities.max(axis=1), probabilities.argmax(axis=1) == truth)
    return {
        "threshold": [cutoff.threshold for cutoff in found],
        "coverage": [cutoff.rows / len(truth) for cutoff in found],
        "precision": [cutoff.correct / cutoff.rows for cutoff in found],
    }


def _class_indices(truth: pa.ChunkedArray, class_names: Sequence[str]) -> NDArray[np.int64]:
    index = {name: i for i, name in enumerate(class_names)}
    labels = truth.to_pylist()
    unknown = Counter(label for label in labels if label not in index)
    if unknown:
        raise unknown_labels(unknown, len(labels), class_names)
    return np.array([index[label] for label in labels], dtype=np.int64)


def _check_labels(
    predictions: pa.Table, probabilities: NDArray[np.floating[Any]], class_names: Sequence[str]
) -> None:
    """Refuse labels that are not a most probable class: the metrics would describe other predictions."""
    index = {name: i for i, name in enumerate(class_names)}
    labels = predictions.column("label").to_pylist()
    best = probabilities.max(axis=1)
    wrong = [i for i, x in enumerate(labels) if x not in index or probabilities[i, index[x]] < best[i]]
    if wrong:
        first = wrong[0]
        raise DataError(
            f"{len(wrong)} of {len(labels)} rows have a label that is not their most probable class; "
            f"first: id {predictions.column('id')[first].as_py()!r}, label {labels[first]!r}, most probable "
            f"{class_names[probabilities[first].argmax()]!r}. The classes must be in the order of the bundle."
        )


def _per_subset(
    predictions: pa.Table, truth: NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, Any]:
    result = {}
    for name, probabilities, complete in subsets(predictions, len(class_names)):
        predicted = probabilities.argmax(axis=1)
        summary = metrics.from_confusion(metrics.confusion_matrix(truth, predicted, len(class_names)))
        result[name] = {
            "rows": len(truth),
            "rows_present": int(complete.sum()),
            "accuracy": summary["accuracy"],
            "accuracy_present": float((predicted == truth)[complete].mean()) if complete.any() else None,
            "macro_f1": summary["macro_f1"],
            "log_loss": metrics.log_loss(truth, probabilities),
            "ece": metrics.expected_calibration_error(truth, probabilities),
        }
    return result


def _worst(
    ids: pa.ChunkedArray,
    truth: NDArray[np.int64],
    probabilities: NDArray[np.floating[Any]],
    class_names: Sequence[str],
    num_worst: int,
) -> tuple[Mistake, ...]:
    predicted = probabilities.argmax(axis=1)
    mistakes = (
        Mistake(
            id=str(ids[i].as_py()),
            truth=class_names[truth[i]],
            label=class_names[predicted[i]],
            probability=float(probabilities[i, predicted[i]]),
        )
        for i in np.flatnonzero(predicted != truth).tolist()
    )
    return tuple(sorted(mistakes, key=lambda m: (-m.probability, m.id))[:num_worst])
