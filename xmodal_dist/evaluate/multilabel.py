"""Evaluation of predictions of any number of classes a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist import multilabel
from xmodal_dist.errors import DataError
from xmodal_dist.evaluate.predictions import (
    Evaluation,
    Mistake,
    check_columns,
    fusion,
    subsets,
    unknown_labels,
    vectors,
)
from xmodal_dist.precision_recall import precision_recall
from xmodal_dist.task import MULTILABEL

__all__ = ["evaluate_label_sets"]

_LABELS, _LOGITS = "labels", "logits"

_Array = NDArray[Any]


def evaluate_label_sets(
    predictions: pa.Table, class_names: Sequence[str], thresholds: _Array, num_worst: int = 20
) -> Evaluation:
    """Evaluate predictions of labelled records.

    Args:
        predictions: as for :func:`xmodal_dist.evaluate.evaluate_predictions`, but for ``truth`` and ``labels``, lists
            of classes; ``labels`` are those whose probability reaches its threshold.
        class_names: the C classes, in the order of the probabilities.
        thresholds: [C].
        num_worst: at most so many errors in :attr:`Evaluation.worst`.

    Returns:
        ``metrics``: ``task``; those of :func:`xmodal_dist.multilabel.multilabel_metrics`; ``prior``, what the classes'
        shares in these very rows would reach without looking at a record: ``mean_average_precision`` and ``log_loss``;
        ``per_subset`` (``image+text`` -> ``rows``, ``rows_present``, ``mean_average_precision``, ``micro_f1``,
        ``macro_f1``, ``log_loss``, ``ece``); ``best_single`` and ``fusion_gain`` by mean average precision;
        ``uncalibrated`` (``ece`` and ``log_loss``; None without the column ``logits``). ``worst``: rows whose set is
        wrong, the most confident single mistake first; the probability is that of the class that is wrong being as
        it was said. ``curves``: ``precision_recall``
        (:func:`xmodal_dist.precision_recall.precision_recall`), ``reliability`` and ``reliability_uncalibrated`` of
        all pairs.

    Raises:
        DataError: no rows, a missing column, a true class that the model does not know, or columns that contradict
            each other.
    """
    check_columns(predictions, _LABELS)
    truth = _targets(predictions.column("truth"), class_names)
    probabilities = vectors(predictions, "probabilities", len(class_names))
    _check_labels(predictions, probabilities, class_names, thresholds)
    found = multilabel.multilabel_metrics(truth, probabilities, thresholds, class_names)
    per_subset = _per_subset(predictions, truth, thresholds)
    raw = None
    if _LOGITS in predictions.column_names:
        raw = 1 / (1 + np.exp(-vectors(predictions, _LOGITS, len(class_names)).astype(np.float64)))
    return Evaluation(
        metrics={
            "task": MULTILABEL.name,
            **found,
            "prior": _prior(truth),
            "per_subset": per_subset,
            **fusion("mean_average_precision", found["mean_average_precision"], per_subset),
            "uncalibrated": None if raw is None else _without(multilabel.sureness(truth, raw), "brier"),
        },
        worst=_worst(predictions.column("id"), truth, probabilities, thresholds, class_names, num_worst),
        curves={
            "precision_recall": precision_recall(truth > 0, probabilities, class_names)[1],
            "reliability": multilabel.reliability_bins(truth, probabilities),
            "reliability_uncalibrated": None if raw is None else multilabel.reliability_bins(truth, raw),
        },
    )


def _targets(truth: pa.ChunkedArray, class_names: Sequence[str]) -> _Array:
    found = MULTILABEL.targets(truth, pa.array(class_names, pa.string()))
    if not MULTILABEL.labelled(found).all():
        labels, known = truth.to_pylist(), set(class_names)
        unknown = Counter[Any](name for label in labels for name in label or () if name not in known)
        if missing := sum(label is None for label in labels):
            unknown[None] = missing
        raise unknown_labels(unknown, len(labels), class_names)
    return found


def _check_labels(
    predictions: pa.Table, probabilities: _Array, class_names: Sequence[str], thresholds: _Array
) -> None:
    """Refuse labels that are not those that reach their thresholds: the metrics would describe other predictions."""
    said = MULTILABEL.targets(predictions.column(_LABELS), pa.array(class_names, pa.string()))
    wrong = np.flatnonzero(((said > 0) != (probabilities >= thresholds)).any(axis=1))
    if len(wrong):
        raise DataError(
            f"{len(wrong)} of {len(said)} rows have labels that are not those that reach their thresholds; first: id "
            f"{predictions.column('id')[int(wrong[0])].as_py()!r}. The classes and thresholds must be the bundle's."
        )


def _prior(truth: _Array) -> dict[str, float]:
    share = truth.mean(axis=0)
    constant = np.broadcast_to(share, truth.shape)
    return {
        # Of equal scores, average precision is the share of the class.
        "mean_average_precision": float(share[share > 0].mean()) if share.any() else 0.0,
        "log_loss": multilabel.sureness(truth, constant)["log_loss"],
    }


def _per_subset(predictions: pa.Table, truth: _Array, thresholds: _Array) -> dict[str, Any]:
    result = {}
    for name, probabilities, complete in subsets(predictions, truth.shape[1]):
        sums = multilabel.from_outcomes(multilabel.outcomes(truth, probabilities >= thresholds))
        result[name] = {
            "rows": len(truth),
            "rows_present": int(complete.sum()),
            "mean_average_precision": multilabel.mean_average_precision(truth, probabilities),
            "micro_f1": sums["micro_f1"],
            "macro_f1": sums["macro_f1"],
            **_without(multilabel.sureness(truth, probabilities), "brier"),
        }
    return result


def _without(figures: dict[str, float], name: str) -> dict[str, float]:
    return {key: value for key, value in figures.items() if key != name}


def _worst(
    ids: pa.ChunkedArray,
    truth: _Array,
    probabilities: _Array,
    thresholds: _Array,
    class_names: Sequence[str],
    num_worst: int,
) -> tuple[Mistake, ...]:
    said = probabilities >= thresholds
    sure = np.where(said == (truth > 0), 0.0, np.where(said, probabilities, 1 - probabilities)).max(axis=1)
    wrong = np.flatnonzero((said != (truth > 0)).any(axis=1))
    first = wrong[np.argsort(-sure[wrong], kind="stable")][:num_worst]

    def named(chosen: _Array) -> str:
        return ", ".join(name for name, there in zip(class_names, chosen, strict=True) if there) or "(none)"

    return tuple(
        Mistake(str(ids[row].as_py()), named(truth[row] > 0), named(said[row]), float(sure[row]))
        for row in first.tolist()
    )
