from __future__ import annotations

from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from xmodal_dist.dataset.split import SPLITS, Ratio, grouped, hashed, shuffled, stratified, stratified_sets

MANY = settings(max_examples=300, deadline=None)


@st.composite
def ratios(draw: st.DrawFn) -> Ratio:
    train, val, test = (draw(st.integers(low, 20)) for low in (1, 0, 0))
    total = train + val + test
    return train / total, val / total, test / total


labels_ = st.lists(st.sampled_from("abcdefgh"), max_size=200)
seeds = st.integers(0, 2**31)


@MANY
@given(labels_, ratios(), seeds)
def test_stratified_rounds_every_class_share_up_or_down(labels: list[str], ratio: Ratio, seed: int) -> None:
    split_of = stratified(labels, ratio, seed)
    for name, size in Counter(labels).items():
        counts = [
            sum(1 for la, s in zip(labels, split_of, strict=True) if la == name and s == i) for i in range(3)
        ]
        assert sum(counts) == size
        assert all(abs(count - share * size) < 1 for count, share in zip(counts, ratio, strict=True))
        assert counts[0] >= 1, "a class without a training record"
        assert all(count == 0 for count, share in zip(counts, ratio, strict=True) if share == 0)


@MANY
@given(st.integers(1, 500), ratios(), seeds)
def test_one_class_is_apportioned_by_largest_remainder(rows: int, ratio: Ratio, seed: int) -> None:
    exact = [Fraction(share).limit_denominator(60) * rows for share in ratio]
    counts = np.bincount(stratified(["a"] * rows, ratio, seed), minlength=3).tolist()
    up = [i for i in range(3) if counts[i] > exact[i]]
    down = [i for i in range(3) if counts[i] < exact[i]]
    assert sum(counts) == rows
    if int(exact[0]) > 0:  # below, the first record goes to train whatever its remainder
        assert all(exact[i] % 1 >= exact[j] % 1 for i in up for j in down)


def test_stratified_totals_come_out_where_every_class_is_rounded() -> None:
    labels = [f"class{i % 40}" for i in range(200)]  # 5 of each: 4, 0.5 and 0.5
    counts = np.bincount(stratified(labels, (0.8, 0.1, 0.1), 0), minlength=3)
    assert counts.tolist() == [160, 20, 20]


def test_stratified_depends_on_its_seed_only() -> None:
    labels = ["a", "b"] * 50
    assert np.array_equal(stratified(labels, (0.8, 0.1, 0.1), 3), stratified(labels, (0.8, 0.1, 0.1), 3))
    assert not np.array_equal(stratified(labels, (0.8, 0.1, 0.1), 3), stratified(labels, (0.8, 0.1, 0.1), 4))


@MANY
@given(st.lists(st.integers(0, 60).map(str), min_size=1, max_size=300), ratios(), seeds)
def test_grouped_keeps_a_group_on_one_side(groups: list[str], ratio: Ratio, seed: int) -> None:
    split_of = grouped(groups, ratio, seed)
    sides = defaultdict(set)
    for group, split in zip(groups, split_of, strict=True):
        sides[group].add(split)
    assert all(len(side) == 1 for side in sides.values())
    counts = np.bincount(split_of, minlength=3)
    largest = max(Counter(groups).values())
    exact = np.array(ratio) * len(groups)
    assert (np.abs(counts - exact) <= 2 * largest).all()
    assert all(count == 0 for count, share in zip(counts, ratio, strict=True) if share == 0)


@MANY
@given(st.lists(st.text(max_size=8), unique=True, max_size=50), st.text(max_size=8), ratios(), seeds)
def test_hash_split_is_stable_when_records_are_added(
    ids: list[str], new: str, ratio: Ratio, seed: int
) -> None:
    assume(new not in ids)
    before, after = hashed(ids, ratio, seed), hashed([new, *ids], ratio, seed)
    assert np.array_equal(before, after[1:])
    assert set(before) <= {i for i, share in enumerate(ratio) if share > 0}


def test_hash_split_meets_its_shares_roughly() -> None:
    shares = np.bincount(hashed([f"r{i}" for i in range(20_000)], (0.7, 0.2, 0.1), 0)) / 20_000
    assert np.abs(shares - [0.7, 0.2, 0.1]).max() < 0.01


@given(st.integers(0, 100), seeds)
def test_shuffled_is_a_seeded_permutation(count: int, seed: int) -> None:
    rows = np.arange(count, dtype=np.int64) * 3
    orders = [shuffled(rows, split, seed) for split in SPLITS]
    assert all(np.array_equal(np.sort(order), rows) for order in orders)
    assert np.array_equal(orders[0], shuffled(rows, "train", seed))


def test_nothing_to_split() -> None:
    for empty in (stratified([], (1, 0, 0), 0), grouped([], (1, 0, 0), 0), hashed([], (1, 0, 0), 0)):
        assert empty.shape == (0,)


sets_ = st.lists(st.frozensets(st.sampled_from("abcde"), max_size=4).map(tuple), max_size=150)


@given(sets_, seeds)
def test_stratified_sets_gives_every_split_its_share_of_every_class(
    labels: list[tuple[str, ...]], seed: int
) -> None:
    ratio = (0.7, 0.1, 0.2)
    split_of = stratified_sets(labels, ratio, seed)
    assert np.array_equal(split_of, stratified_sets(labels, ratio, seed))
    assert len(split_of) == len(labels) and set(split_of.tolist()) <= {0, 1, 2}
    for name, size in Counter(name for label in labels for name in label).items():
        rows = [split for label, split in zip(labels, split_of.tolist(), strict=True) if name in label]
        assert rows.count(0) >= 1, "a class without a training record"
        # Classes that come together cannot all be split exactly.
        assert all(abs(rows.count(i) - share * size) <= 3 + 0.1 * size for i, share in enumerate(ratio))


@given(sets_, seeds)
def test_stratified_sets_leaves_empty_splits_empty(labels: list[tuple[str, ...]], seed: int) -> None:
    split_of = stratified_sets(labels, (0.8, 0.0, 0.2), seed)
    assert 1 not in split_of


def test_single_labels_are_split_as_exactly_as_classes_are() -> None:
    labels = [("a",)] * 50 + [("b",)] * 30 + [()] * 20
    split_of = stratified_sets(labels, (0.8, 0.1, 0.1), 0)
    assert np.bincount(split_of).tolist() == [80, 10, 10]
    assert np.bincount(split_of[:50]).tolist() == [40, 5, 5]
