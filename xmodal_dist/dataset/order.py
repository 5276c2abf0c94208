"""How well mixed an order of reading is. Pure functions; no files.

Rows are only permuted inside windows of a few row groups (as CorgiPile does, Xu et al. 2022), so batches are as mixed
as the dataset was packed. Two figures tell: the entropy of labels in batches against that of batches drawn uniformly,
and the rank correlation of the order of reading with the order of the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "WELL_MIXED",
    "OrderQuality",
    "expected_entropy",
    "label_entropy",
    "order_quality",
    "rank_correlation",
]


WELL_MIXED = 0.9
"""Least ``label_mixing`` of batches that pass for well mixed; that of shuffled datasets is above 0.97."""


class OrderQuality(NamedTuple):
    """How well mixed some batches are.

    Attributes:
        label_mixing: sum over the batches of :func:`label_entropy`, divided by the sum of :func:`expected_entropy` for
            batches of the same sizes: about 1 where batches are as mixed as uniformly drawn ones, 0 where each holds
            one class; 1 where there is only one class, or only batches of one record.
        rank_correlation: Spearman's, of the order of reading with the order of the dataset: 1 where records are read in
            order, about 0 where order tells nothing.
        batches: number of batches looked at.
        records: number of records in them.
    """

    label_mixing: float
    rank_correlation: float
    batches: int
    records: int


def order_quality(
    batches: Sequence[NDArray[np.int64]], positions: NDArray[np.int64], class_counts: Sequence[int]
) -> OrderQuality:
    """The figures of some batches in the order of reading.

    Args:
        batches: class indices of the records of each batch.
        positions: place in the dataset of each record of the batches, laid end to end.
        class_counts: records of each class in the whole split, which batches are compared with.
    """
    sizes = [len(batch) for batch in batches]
    expected = {size: expected_entropy(class_counts, size) for size in set(sizes)}
    uniform = sum(expected[size] for size in sizes)
    found = sum(label_entropy(batch) for batch in batches)
    mixing = found / uniform if uniform > 0 else 1.0
    order = np.arange(len(positions), dtype=np.int64)
    return OrderQuality(mixing, rank_correlation(order, positions), len(sizes), sum(sizes))


def label_entropy(labels: NDArray[np.int64]) -> float:
    """Entropy in nats of the labels' shares: -sum over classes of n_c/n log(n_c/n); 0 of no labels."""
    shares = np.unique(labels, return_counts=True)[1] / max(len(labels), 1)
    return float(-(shares * np.log(shares)).sum())


def expected_entropy(class_counts: Sequence[int], batch_records: int) -> float:
    """Mean :func:`label_entropy` of batches drawn uniformly, without putting records back; exact, in nats.

    With N records, N_c of class c, in batches of n, the number k of records of a class is hypergeometric, so
    E[H] = sum over c and k of C(N_c, k) C(N - N_c, n - k) / C(N, n) * -(k/n) log(k/n).

    Args:
        class_counts: N_c of each class.
        batch_records: n; at most N count.
    """
    total = sum(class_counts)
    size = min(batch_records, total)
    entropy = 0.0
    for count, classes in zip(
        *np.unique(np.asarray(class_counts, dtype=np.int64), return_counts=True), strict=True
    ):
        k = np.arange(max(0, size - (total - count)), min(size, count) + 1, dtype=np.float64)
        # From the ratio of each probability to the one before; neither overflows nor needs factorials.
        ratios = (count - k[:-1]) * (size - k[:-1]) / (k[1:] * (total - count - size + k[1:]))
        log_p = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
        p = np.exp(log_p - log_p.max())
        share = k / max(size, 1)
        terms = -share * np.log(share, out=np.zeros_like(share), where=share > 0)
        entropy += float(classes * (p * terms).sum() / p.sum())
    return entropy


def rank_correlation(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Spearman's rank correlation of two rows of distinct numbers, in [-1, 1]; 0 of fewer than two.

    1 - 6 sum (rank a - rank b)^2 / (n (n^2 - 1)).
    """
    n = len(a)
    if n < 2:
        return 0.0
    ranks_a, ranks_b = (np.argsort(np.argsort(x)).astype(np.float64) for x in (a, b))
    return float(1.0 - 6.0 * np.square(ranks_a - ranks_b).sum() / (n * (float(n) ** 2 - 1.0)))
