"""Which searched settings mattered: permutation importance in a random forest over the trials (Breiman 2001)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["FEWEST_TRIALS", "importances"]

FEWEST_TRIALS = 8
_NOT_SEARCHED = -1.0
_TREES = 100


def importances(
    dimensions: Mapping[str, Mapping[str, Any]],
    points: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    epochs: Sequence[int],
) -> dict[str, float]:
    """Share of each setting in what the forest explains, the largest first; {} of too few trials, or of equal ones.

    Args:
        dimensions: by dotted name, as in result.json.
        points: [n] the values of each trial; a setting whose condition did not hold is missing.
        scores: [n] what each reached.
        epochs: [n] after how many epochs; the forest sees them, so that trials that were stopped early count for what
            they reached by then.
    """
    if len(points) < FEWEST_TRIALS or np.ptp(scores) == 0 or not dimensions:
        return {}
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    names = list(dimensions)
    rows = zip(points, epochs, strict=True)
    x = np.array(
        [[*(_number(dimensions[n], point.get(n)) for n in names), float(after)] for point, after in rows]
    )
    forest = RandomForestRegressor(_TREES, min_samples_leaf=2, random_state=0, n_jobs=1).fit(x, scores)
    found = permutation_importance(forest, x, scores, n_repeats=10, random_state=0, n_jobs=1).importances_mean
    found = np.maximum(found[: len(names)], 0.0)
    if not found.sum():
        return {}
    order = np.argsort(-found, kind="stable")
    return {names[i]: float(found[i] / found.sum()) for i in order}


def _number(dimension: Mapping[str, Any], value: Any) -> float:
    if value is None:
        return _NOT_SEARCHED
    if "choice" in dimension:
        return float(dimension["choice"].index(value)) if value in dimension["choice"] else _NOT_SEARCHED
    return float(np.log(value)) if "loguniform" in dimension and value > 0 else float(value)
