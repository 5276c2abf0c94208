"""Evaluation of predictions of one class a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist import metrics
from xmodal_dist.calibrate import NOTHING, cutoffs, softmax
from xmodal_dist.errors import DataError
from xmodal_dist.precision_recall import precision_recall

__all__ = [
    "SUBSET_PREFIX",
    "Evaluation",
    "Mistake",
    "check_columns",
    "evaluate_predictions",
    "fields_present",
    "subset_column",
    "subset_columns",
    "unknown_labels",
    "vectors",
]

SUBSET_PREFIX = "subset:"
_LOGITS = "logits"
_MAX_NAMED = 10


def subset_column(fields: Sequence[str]) -> str:
    """Name of the column of probabilities that these fields alone give, for example ``subset:image+text``."""
    return SUBSET_PREFIX + "+".join(fields)


@dataclass(frozen=True)
class Mistake:
    """A record whose predicted class is not the true one.

    Attributes:
        id: the record's id.
        truth: true class.
        label: predicted class.
        probability: of the predicted class, in [0, 1].
    """

    id: str
    truth: str
    label: str
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: the content of ``metrics.json``: :func:`xmodal_dist.metrics.classification_metrics` and
            ``per_subset`` (``image+text`` -> ``rows``; ``rows_present``, those that have every field of the
            subset; ``accuracy``, ``macro_f1``, ``log_loss`` and ``ece`` over ``rows``; ``accuracy_present`` over
            ``rows_present``, None without any), ``best_single`` (the field that alone is most accurate; None
            without subset columns), ``fusion_gain`` (accuracy less that of ``best_single``; None with fewer than two
            fields), ``withheld`` (:func:`xmodal_dist.metrics.withheld_accuracy`; None where the columns do not tell),
            ``average_precision`` (one-vs-rest, macro over the classes that have rows; of each in ``per_class``),
            ``uncalibrated`` (``ece`` and ``log_loss`` of the logits as they are; None without the column ``logits``)
            and ``abstention`` (for each threshold given its ``target_precision`` and ``threshold``, and the
            ``coverage`` and ``precision`` here; ``precision`` is None where nothing is covered).
        worst: the errors, the most confident first.
        curves: JSON-able data of plots: ``reliability`` (:func:`xmodal_dist.metrics.reliability_bins`),
            ``reliability_uncalibrated`` (None without the column ``logits``), ``precision_recall``
            (:func:`xmodal_dist.precision_recall.precision_recall`), and ``abstention``: lists of ``threshold``,
            ``coverage`` and ``precision`` where the model may keep silent about what it is less sure of.
    """

    metrics: dict[str, Any]
    worst: tuple[Mistake, ...]
    curves: dict[str, Any]


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
            **_fusion(result["accuracy"], per_subset),
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


def check_columns(predictions: pa.Table, *labels: str) -> None:
    """Raise :class:`DataError` where there are no rows, or a column is absent; ``labels``: that of what was said."""
    needed = {"id", "truth", *labels, "probabilities", "modalities"}
    missing = sorted(needed - set(predictions.column_names))
    if missing:
        raise DataError(f"the predictions lack the column(s) {', '.join(missing)}")
    if predictions.num_rows == 0:
        raise DataError("there is nothing to evaluate: the predictions have no rows; is the split empty?")


def _class_indices(truth: pa.ChunkedArray, class_names: Sequence[str]) -> NDArray[np.int64]:
    index = {name: i for i, name in enumerate(class_names)}
    labels = truth.to_pylist()
    unknown = Counter(label for label in labels if label not in index)
    if unknown:
        raise unknown_labels(unknown, len(labels), class_names)
    return np.array([index[label] for label in labels], dtype=np.int64)


def unknown_labels(unknown: Counter[Any], rows: int, class_names: Sequence[str]) -> DataError:
    """What to say of true classes that the model does not know, given how often each occurs in so many rows."""
    named = [
        f"{'no label' if label is None else repr(label)} ({count} row{'s' if count > 1 else ''})"
        for label, count in sorted(unknown.items(), key=lambda item: (-item[1], str(item[0])))
    ]
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return DataError(
        f"{unknown.total()} of {rows} rows have a label that the model was not trained on: "
        f"{', '.join(named[:_MAX_NAMED])}{more}. It knows: {_shortened(class_names)}. "
        "Retrain on data with these labels, or filter the rows out of the split that is evaluated."
    )


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[: 3 * _MAX_NAMED])
    return shown + (f" and {len(names) - 3 * _MAX_NAMED} more" if len(names) > 3 * _MAX_NAMED else "")


def vectors(predictions: pa.Table, name: str, num_classes: int) -> NDArray[np.floating[Any]]:
    """The column as [n, C]."""
    column = predictions.column(name)
    if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != num_classes:
        expected = f"a fixed-size list of {num_classes} numbers, one a class"
        raise DataError(f"column {name!r} is {column.type}; expected {expected}")
    if column.null_count:
        raise DataError(f"column {name!r} has {column.null_count} null rows")
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    values: NDArray[np.floating[Any]] = np.concatenate(flat).reshape(-1, num_classes)
    if not np.isfinite(values).all():
        raise DataError(f"column {name!r} has values that are not finite: the model has diverged")
    return values


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


def fields_present(predictions: pa.Table) -> list[frozenset[str]]:
    """The fields that each record has."""
    return [frozenset(fields or ()) for fields in predictions.column("modalities").to_pylist()]


def subset_columns(predictions: pa.Table) -> dict[str, str]:
    """Name of each subset -> its column."""
    names = [name for name in predictions.column_names if name.startswith(SUBSET_PREFIX)]
    return {name.removeprefix(SUBSET_PREFIX): name for name in names}


def _per_subset(
    predictions: pa.Table, truth: NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, Any]:
    present = fields_present(predictions)
    result = {}
    for name, column in subset_columns(predictions).items():
        if name == NOTHING:
            continue
        probabilities = vectors(predictions, column, len(class_names))
        predicted = probabilities.argmax(axis=1)
        complete = np.array([fields.issuperset(name.split("+")) for fields in present], dtype=np.bool_)
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


def _fusion(accuracy: float, per_subset: dict[str, Any]) -> dict[str, Any]:
    singles = {name: values["accuracy"] for name, values in per_subset.items() if "+" not in name}
    if not singles:
        return {"best_single": None, "fusion_gain": None}
    best = max(singles, key=lambda name: singles[name])
    return {"best_single": best, "fusion_gain": accuracy - singles[best] if len(singles) > 1 else None}


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
