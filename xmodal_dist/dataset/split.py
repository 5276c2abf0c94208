"""Which split each record belongs to. Pure functions of labels, groups or ids, a ratio and a seed; no files.

Every function returns [n] indices into :data:`SPLITS`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SPLITS",
    "SPLIT_ALIASES",
    "Ratio",
    "grouped",
    "hashed",
    "shuffled",
    "stratified",
    "stratified_sets",
]

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
"""Spellings of the splits in sources, in lower case."""

Ratio = tuple[float, float, float]
"""Shares of train, val and test; they sum to 1."""


def stratified(labels: Sequence[str], ratio: Ratio, seed: int) -> NDArray[np.int64]:
    """Split every class by the ratio.

    Each class gives each split its exact share rounded down or up; what rounding left over is carried from class to
    class, so that the totals come out too. A class's first record goes to train, where train has a share.
    """
    split_of = np.zeros(len(labels), dtype=np.int64)
    names, classes = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    owed = np.zeros(len(SPLITS))
    for index, name in enumerate(names):
        rows = np.flatnonzero(classes == index)
        counts, owed = _apportion(len(rows), _shares(ratio), owed)
        order = _generator(seed, f"stratified/{name}").permutation(len(rows))
        split_of[rows[order]] = np.repeat(np.arange(len(SPLITS)), counts)
    return split_of


def stratified_sets(labels: Sequence[Sequence[str]], ratio: Ratio, seed: int) -> NDArray[np.int64]:
    """Split records of any number of classes so that each class is split by the ratio as nearly as can be.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data"): the
    class with the fewest records left comes first, for it leaves the least choice; each of its records goes to the
    split that lacks most of that class, of equals to the one that lacks most records. Records of no class come last. A
    class's first record goes to train, where train has a share.
    """
    shares = _shares(ratio)
    counts = Counter(name for label in labels for name in label)
    names = sorted(counts)
    lacking = {name: (shares * counts[name]).tolist() for name in names}
    room = (shares * len(labels)).tolist()
    rows_of: dict[str, list[int]] = {name: [] for name in names}
    order = _generator(seed, "stratified_sets").permutation(len(labels)).tolist()
    for row in order:
        for name in labels[row]:
            rows_of[name].append(row)
    split_of = np.full(len(labels), -1, dtype=np.int64)
    splits = [split for split in range(len(SPLITS)) if shares[split] > 0]
    untrained = set(names) if shares[0] > 0 else set[str]()

    def put(row: int, split: int) -> None:
        if not untrained.isdisjoint(labels[row]):
            split = 0
            untrained.difference_update(labels[row])
        split_of[row] = split
        room[split] -= 1
        for name in labels[row]:
            lacking[name][split] -= 1
            counts[name] -= 1

    while left := [name for name in names if counts[name]]:
        rarest = min(left, key=lambda name: counts[name])
        needs = lacking[rarest]
        for row in rows_of[rarest]:
            if split_of[row] < 0:
                put(row, max(splits, key=lambda split: (needs[split], room[split])))
    for row in order:
        if split_of[row] < 0:
            put(row, max(splits, key=lambda split: room[split]))
    return split_of


def grouped(groups: Sequence[str], ratio: Ratio, seed: int) -> NDArray[np.int64]:
    """Split so that the records of a group are all on one side.

    Groups, the largest first and equals in seeded order, go to the split that lacks most records of its share.
    """
    names, group_of = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(group_of, minlength=len(names))
    order = _generator(seed, "grouped").permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    shares = _shares(ratio)
    lacking = shares * len(groups)
    split_of_group = np.zeros(len(names), dtype=np.int64)
    for group in order:
        chosen = int(np.argmax(np.where(shares > 0, lacking, -np.inf)))
        split_of_group[group] = chosen
        lacking[chosen] -= sizes[group]
    return split_of_group[group_of]


def hashed(ids: Sequence[str], ratio: Ratio, seed: int) -> NDArray[np.int64]:
    """Split by BLAKE2b of seed and id: a record keeps its split whatever is added; shares are approximate."""
    bounds = np.cumsum(_shares(ratio))[:-1]
    places = np.fromiter((_unit_interval(f"{seed}/{record_id}") for record_id in ids), np.float64, len(ids))
    return np.searchsorted(bounds, places, side="right").astype(np.int64)


def shuffled(rows: NDArray[np.int64], split: str, seed: int) -> NDArray[np.int64]:
    """The rows of one split in the order in which they are packed: the one global shuffle."""
    return rows[_generator(seed, f"shuffle/{split}").permutation(len(rows))]


def _shares(ratio: Ratio) -> NDArray[np.float64]:
    return np.array(ratio, dtype=np.float64) / sum(ratio)


def _apportion(
    rows: int, shares: NDArray[np.float64], owed: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Whole counts that sum to ``rows``, and the shares still owed to each split after them."""
    exact = shares * rows
    counts = np.floor(exact + 1e-9).astype(np.int64)
    claim = np.where((exact - counts) > 1e-9, exact - counts + owed, -np.inf)
    if shares[0] > 0 and counts[0] == 0:
        claim[0] = np.inf
    counts[np.argsort(-claim, kind="stable")[: rows - counts.sum()]] += 1
    return counts, owed + exact - counts


def _unit_interval(text: str) -> float:
    # 53 bits: every value is a float below 1, none rounds up to it.
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / float(1 << 53)


def _generator(seed: int, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
