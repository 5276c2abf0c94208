"""Precision against recall, and the area below: average precision.

Average precision is the sum of precision * (gain of recall) over the thresholds where recall grows, without
interpolation between them (as in scikit-learn). So a curve is a function of steps: ``precision[i]`` holds for recall
from ``recall[i - 1]`` (from 0 for the first) to ``recall[i]``. Whatever is thinned or averaged here keeps its area.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_CURVES", "MAX_POINTS", "Curve", "curve", "mean_curve", "precision_recall", "thinned"]

MAX_POINTS = 100
"""Most steps of a curve that is kept."""

MAX_CURVES = 40
"""Most classes whose curves are kept."""


class Curve(NamedTuple):
    """Steps of precision over recall, both [k] in [0, 1]; ``recall`` rises, and ends at 1."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]

    @property
    def area(self) -> float:
        """Average precision."""
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum())


def curve(positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]]) -> Curve | None:
    """The exact curve of one class against the rest.

    Args:
        positive: [n] whether the row is of the class.
        scores: [n] the higher, the surer.

    Returns:
        At most as many steps as there are positive rows; None without any.
    """
    total = int(positive.sum())
    if total == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_ties = np.append(ranked[1:] != ranked[:-1], True)
    hits = np.cumsum(positive[order])[last_of_ties]
    predicted = np.flatnonzero(last_of_ties) + 1
    grows = np.diff(hits, prepend=0) > 0
    return Curve(hits[grows] / total, hits[grows] / predicted[grows])


def thinned(steps: Curve, num_points: int = MAX_POINTS) -> Curve:
    """The curve in at most ``num_points`` steps; those of a longer one are of equal width, at their mean precision."""
    return steps if len(steps.recall) <= num_points else _averaged(steps, num_points)


def mean_curve(curves: Sequence[Curve], num_points: int = MAX_POINTS) -> Curve:
    """The mean precision of the curves at each recall; its area is the mean of theirs (macro average)."""
    averaged = [_averaged(steps, num_points) for steps in curves]
    return Curve(averaged[0].recall, np.mean([steps.precision for steps in averaged], axis=0))


def _averaged(steps: Curve, num_points: int) -> Curve:
    """Mean precision in ``num_points`` intervals of equal width, exactly."""
    ends = np.linspace(0.0, 1.0, num_points + 1)
    areas = np.append(0.0, np.cumsum(np.diff(steps.recall, prepend=0.0) * steps.precision))
    return Curve(ends[1:], np.diff(np.interp(ends, np.append(0.0, steps.recall), areas)) * num_points)


def precision_recall(
    positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]], class_names: Sequence[str]
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Average precision of each class, and the curves that a plot shows.

    Args:
        positive: [n, C] whether the row is of the class; of one class (one-vs-rest), or of any number of them.
        scores: [n, C].
        class_names: C names.

    Returns:
        Name -> average precision, None for a class without rows. And JSON-able curves, each with ``average_precision``,
        ``recall`` and ``precision`` of at most :data:`MAX_POINTS` steps: ``micro`` (all n * C decisions together),
        ``macro`` (mean over the classes that have rows), ``classes`` (by name, the lowest average precision first, at
        most :data:`MAX_CURVES`).
    """
    found = {name: curve(positive[:, c], scores[:, c]) for c, name in enumerate(class_names)}
    defined = {name: steps for name, steps in found.items() if steps is not None}
    lowest = sorted(defined, key=lambda name: defined[name].area)[:MAX_CURVES]
    together = curve(positive.ravel(), scores.ravel())
    curves = {
        "micro": None if together is None else _document(together),
        "macro": _document(mean_curve(list(defined.values()))) if defined else None,
        "classes": {name: _document(defined[name]) for name in lowest},
    }
    return {name: None if steps is None else steps.area for name, steps in found.items()}, curves


def _document(steps: Curve) -> dict[str, Any]:
    kept = thinned(steps)
    return {
        "average_precision": steps.area,
        "recall": kept.recall.tolist(),
        "precision": kept.precision.tolist(),
    }
