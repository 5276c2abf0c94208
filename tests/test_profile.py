"""Profiles: counts that add up in any order, and an index that sees what shifted and nothing else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.batch import Arrays
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import CheckpointError
from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.modalities.tabular import TabularSettings
from xmodal_dist.pipeline.fit import decode_sample, fit_fields
from xmodal_dist.profile import MAJOR, Profile, ProfileCounts, count, drift, fit_profile

COLUMNS = [{"name": "size", "mean": 0.0, "std": 1.0}, {"name": "colour", "categories": ["red", "blue"]}]
SPECS = (FieldSpec("table", ("size", "colour"), TabularSettings(), Fitted({"columns": COLUMNS})),)
LABELS = {"cat": 600, "dog": 400}


def _records(rows: int, seed: int = 0, shift: float = 0.0) -> tuple[dict[str, Arrays], Any]:
    rng = np.random.default_rng(seed)
    present = rng.random((rows, 1)) > 0.2
    missing = rng.random((rows, 1)) < 0.1
    numeric = np.where(missing, 0, rng.normal(shift, 1, (rows, 1))).astype(np.float32)
    arrays = {
        "numeric": numeric,
        "missing": missing,
        "categorical": rng.choice([0, 1, 2, 3], (rows, 1), p=[0.1, 0.1, 0.5, 0.3]).astype(np.int32),
    }
    return {"table": arrays}, present


def _slice(fields: dict[str, Arrays], start: int, stop: int) -> dict[str, Arrays]:
    return {field: {name: a[start:stop] for name, a in own.items()} for field, own in fields.items()}


def _profile(rows: int = 1000) -> Profile:
    fields, present = _records(rows)
    return fit_profile(SPECS, [(fields, present, np.arange(rows))], LABELS)


def _row(rows: list[dict[str, Any]], measure: str, field: str = "table") -> dict[str, Any]:
    return next(row for row in rows if (row["field"], row["measure"]) == (field, measure))


PROFILE = _profile()


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=6), order=st.randoms(use_true_random=False))
def test_counts_add_up_in_any_grouping_and_order(cuts: list[int], order: Any) -> None:
    fields, present = _records(300, seed=5)
    whole = count(PROFILE, SPECS, fields, present)
    borders = sorted({0, *cuts, 300})
    parts = [
        count(PROFILE, SPECS, _slice(fields, a, b), present[a:b])
        for a, b in zip(borders, borders[1:], strict=False)
    ]
    order.shuffle(parts)
    assert sum(parts, ProfileCounts()) == whole
    middle = len(parts) // 2
    assert sum(parts[:middle], ProfileCounts()) + sum(parts[middle:], ProfileCounts()) == whole
    assert ProfileCounts() + whole == whole == whole + ProfileCounts()
    assert ProfileCounts.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    assert ProfileCounts.from_json({}) == ProfileCounts() and ProfileCounts().to_json() == {}


def test_every_counted_record_is_in_one_bin_of_each_measure() -> None:
    fields, present = _records(500, seed=2)
    kept = np.arange(0, 500, 3)
    found = count(PROFILE, SPECS, fields, present, kept)
    there = int(present[kept].sum())
    assert (found.rows, found.missing) == (len(kept), {"table": len(kept) - there})
    for counts in found.measures["table"].values():
        assert counts.sum() == there
    shown = present[kept][:, 0] & fields["table"]["missing"][kept][:, 0]
    assert found.measures["table"]["column:size"][-1] == shown.sum(), "without a figure"
    assert not count(PROFILE, SPECS, fields, np.zeros_like(present)).measures["table"]["column:size"].any()


def test_fitting_does_not_depend_on_pieces_and_survives_json() -> None:
    fields, present = _records(1000)
    pieces = [
        (_slice(fields, a, a + 70), present[a : a + 70], np.arange(min(70, 1000 - a)))
        for a in range(0, 1000, 70)
    ]
    assert fit_profile(SPECS, pieces, LABELS) == PROFILE
    assert Profile.from_json(json.loads(json.dumps(PROFILE.to_json()))) == PROFILE
    assert PROFILE.counts == count(PROFILE, SPECS, fields, present)
    deciles = PROFILE.counts.measures["table"]["column:size"][:10]
    assert len(PROFILE.edges["table"]["column:size"]) == 9 and np.ptp(deciles) <= 2
    with pytest.raises(CheckpointError, match="version 9"):
        Profile.from_json({"version": 9})


@settings(max_examples=30, deadline=None)
@given(times=st.integers(1, 1000))
def test_equal_shares_have_an_index_of_zero(times: int) -> None:
    many = sum([PROFILE.counts] * times, ProfileCounts()) if times < 20 else PROFILE.counts
    rows = drift(PROFILE, many, {name: rows * times for name, rows in LABELS.items()})
    assert len(rows) == 1 + 1 + 4
    assert [row["psi"] for row in rows] == pytest.approx([0] * len(rows), abs=1e-12)
    assert {row["level"] for row in rows} == {"stable"}


def test_the_index_is_that_of_its_definition() -> None:
    row = _row(drift(PROFILE, PROFILE.counts, {"cat": 30, "dog": 70}), "label", "")
    assert row["psi"] == pytest.approx((0.3 - 0.6) * np.log(0.3 / 0.6) + (0.7 - 0.4) * np.log(0.7 / 0.4))
    assert (row["level"], row["bins"], row["now"]) == ("major", ["cat", "dog"], [0.3, 0.7])


def test_a_shift_shows_where_it_is_and_nowhere_else() -> None:
    fields, present = _records(5000, seed=9, shift=1.0)
    rows = drift(PROFILE, count(PROFILE, SPECS, fields, present), {"cat": 2900, "dog": 2100})
    assert (rows[0]["measure"], rows[1]["measure"]) == ("label", "column:size")
    assert rows[1]["level"] == "major" and rows[1]["psi"] > MAJOR
    assert {row["level"] for row in rows if row["measure"] != "column:size"} == {"stable"}
    assert _row(rows, "missing")["now"] == pytest.approx([0.8, 0.2], abs=0.03)
    for row in rows:
        assert len(row["bins"]) == len(row["before"]) == len(row["now"])
        assert sum(row["before"]) == pytest.approx(1) == sum(row["now"])
    json.dumps(rows)


def test_few_rows_without_a_shift_are_called_chance() -> None:
    levels = []
    for seed in range(100, 150):
        fields, present = _records(25, seed=seed)
        rows = drift(PROFILE, count(PROFILE, SPECS, fields, present), {})
        levels += [row["level"] for row in rows if row["psi"] >= 0.1]
    assert len(levels) > 50 and levels.count("chance") / len(levels) > 0.93


def test_values_beyond_all_that_training_saw_show_on_either_side() -> None:
    constant = np.full((200, 1), 2, dtype=np.float32)
    arrays = {"numeric": constant, "missing": constant < 0, "categorical": constant.astype(np.int32)}
    present = np.ones((200, 1), dtype=bool)
    profile = fit_profile(SPECS, [({"table": arrays}, present, np.arange(200))], LABELS)
    for other in (1.0, 3.0):
        moved = {**arrays, "numeric": np.full((200, 1), other, dtype=np.float32)}
        row = _row(drift(profile, count(profile, SPECS, {"table": moved}, present), {}), "column:size")
        assert row["level"] == "major"


def test_nothing_to_fit_and_nothing_to_compare() -> None:
    fields, present = _records(0)
    empty = fit_profile(SPECS, [(fields, present, np.arange(0))], {})
    assert drift(empty, count(empty, SPECS, *_records(10)), {"cat": 10}) == []
    assert drift(PROFILE, ProfileCounts(), {}) == []
    assert drift(PROFILE, ProfileCounts.from_json({}), {"new": 10})[0]["bins"] == ["cat", "dog", "new"]


def test_a_real_sample_is_spread_over_the_split_and_profiles_every_field(tiny_dataset: str) -> None:
    manifest = load_manifest(tiny_dataset)
    specs = fit_fields(tiny_dataset, manifest, {}, 1000)
    pieces = list(decode_sample(tiny_dataset, manifest, specs, 100))
    assert 90 <= sum(len(rows) for _, _, rows in pieces) <= 100
    profile = fit_profile(specs, decode_sample(tiny_dataset, manifest, specs, 1000), {})
    assert profile.counts.rows == manifest.splits["train"].rows
    assert profile.counts.missing == manifest.splits["train"].missing
    assert {name: list(own) for name, own in profile.edges.items()} == {
        "picture": ["brightness", "contrast"],
        "caption": ["tokens", "unknown_share"],
        "weather": ["missing_share", "unknown_share", "column:height", "column:kind_of_day"],
    }
