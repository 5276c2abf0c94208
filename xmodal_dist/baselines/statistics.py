"""Uncertainty of a comparison on one set of rows: bootstrap intervals, a paired test, correction for many tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVEL", "RESAMPLES", "Interval", "Paired", "bootstrap_intervals", "holm", "paired_test"]

RESAMPLES = 2000
"""Of the bootstrap."""
LEVEL = 0.95
"""Of the intervals."""
_CELLS_AT_ONCE = 4_000_000

Interval = tuple[float, float]
"""Lower and upper end."""


class Paired(NamedTuple):
    """Two models on the same rows.

    Attributes:
        difference: accuracy of the first less that of the second.
        interval: 95 % of the bootstrap around it.
        only_first: rows that only the first gets right.
        only_second: rows that only the second gets right.
        p: McNemar's test, mid-p.
    """

    difference: float
    interval: Interval
    only_first: int
    only_second: int
    p: float


def bootstrap_intervals(
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    num_classes: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile bootstrap over rows (Efron and Tibshirani 1993, chapter 13) of what a confusion matrix gives.

    Rows drawn with replacement fall into the cells of the confusion matrix as a multinomial distribution says, so its
    cells are drawn instead, in a time that does not depend on the number of rows.

    Args:
        truth: [n] class index.
        predicted: [n] class index.
        num_classes: C.
        resamples: how many times to draw.
        seed: of the draws; the same input gives the same intervals.

    Returns:
        95 % intervals of ``accuracy``, ``macro_recall`` and ``macro_f1``, defined as in :mod:`xmodal_dist.metrics`.
    """
    from scipy.sparse import csr_matrix

    cells, counts = np.unique(truth * num_classes + predicted, return_counts=True)
    true_class, predicted_class = np.divmod(cells, num_classes)
    places, ones = np.arange(len(cells)), np.ones(len(cells))
    shape = (len(cells), num_classes)
    by_truth = csr_matrix((ones, (places, true_class)), shape)
    by_prediction = csr_matrix((ones, (places, predicted_class)), shape)
    hit = csr_matrix(((true_class == predicted_class).astype(np.float64), (places, true_class)), shape)
    rng = np.random.default_rng(seed)
    found: dict[str, list[NDArray[np.float64]]] = {"accuracy": [], "macro_recall": [], "macro_f1": []}
    at_once = max(1, _CELLS_AT_ONCE // (len(cells) + 3 * num_classes))
    for start in range(0, resamples, at_once):
        draws = rng.multinomial(len(truth), counts / len(truth), min(at_once, resamples - start))
        support, predictions, hits = (draws @ part for part in (by_truth, by_prediction, hit))
        supported = support > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            recall, f1 = hits / support, 2 * hits / (support + predictions)
        found["accuracy"].append(hits.sum(axis=1) / len(truth))
        for name, values in (("macro_recall", recall), ("macro_f1", f1)):
            found[name].append(np.where(supported, values, 0.0).sum(axis=1) / supported.sum(axis=1))
    return {name: _percentiles(np.concatenate(parts)) for name, parts in found.items()}


def paired_test(
    first_right: NDArray[np.bool_],
    second_right: NDArray[np.bool_],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """Compare two models by the rows that only one of them gets right.

    McNemar's test (McNemar 1947) in its exact conditional form with mid-p, which is far less
    timid than exact p and all but holds its level (Fagerland, Lydersen and Laake 2013). The interval is the percentile
    bootstrap over rows.

    Args:
        first_right: [n], True where the first model is right.
        second_right: [n], likewise.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    from scipy.stats import binom

    rows = len(first_right)
    first = int((first_right & ~second_right).sum())
    second = int((second_right & ~first_right).sum())
    fewer, differing = min(first, second), first + second
    mid_p = 2 * binom.cdf(fewer, differing, 0.5) - binom.pmf(fewer, differing, 0.5)
    shares = np.array([first, second, rows - differing]) / rows
    draws = np.random.default_rng(seed).multinomial(rows, shares, resamples)
    interval = _percentiles((draws[:, 0] - draws[:, 1]) / rows)
    return Paired((first - second) / rows, interval, first, second, float(min(1.0, mid_p)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): below 0.05, any false finding at all has a chance below 0.05."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    result = np.empty(len(p_values))
    result[order] = np.minimum(np.maximum.accumulate(corrected), 1.0)
    return [float(p) for p in result]


def _percentiles(values: NDArray[Any]) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
