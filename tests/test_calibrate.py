"""Temperatures and thresholds: what is calibrated stays, what is not becomes so, and bounds hold."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.calibrate import (
    NOTHING,
    PRIOR_ROWS,
    Calibration,
    cutoffs,
    fit_calibration,
    fit_temperature,
    precision_bound,
    softmax,
)
from xmodal_dist.errors import CheckpointError, DataError, UsageError
from xmodal_dist.metrics import expected_calibration_error, log_loss

FIELDS = ["image", "text"]


def _drawn(rows: int, seed: int = 0, classes: int = 4):
    """Logits, and classes drawn as their softmax says: calibrated by construction."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(rows, classes)).astype(np.float32)
    uniform = rng.random((rows, 1))
    return logits, (softmax(logits).cumsum(axis=1) < uniform).sum(axis=1).clip(max=classes - 1)


def _calibration(rows: int = 2000, seed: int = 0, scale: float = 3.0) -> Calibration:
    """Of logits that are ``scale`` times too large, and half as informative where only the image is there."""
    logits, truth = _drawn(rows, seed)
    present = np.random.default_rng(seed + 1).random((rows, 2)) < 0.8
    by_subset = {
        NOTHING: np.zeros_like(logits),
        "image": scale * logits / 2,
        "text": scale * logits,
        "image+text": scale * logits,
    }
    names = ["+".join(f for f, has in zip(FIELDS, row, strict=True) if has) or NOTHING for row in present]
    whole = np.stack([by_subset[name][i] for i, name in enumerate(names)])
    return fit_calibration(by_subset, whole, present, truth, FIELDS, dataset="d", split="val")


# --- temperatures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_calibrated_logits_have_temperature_one(seed: int):
    assert fit_temperature([_drawn(20_000, seed)], prior=1.0) == pytest.approx(1.0, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 5.0), st.integers(0, 99), st.integers(2, 6))
def test_scaled_logits_have_the_scale_as_temperature(scale: float, seed: int, classes: int):
    logits, truth = _drawn(500, seed, classes)
    plain = fit_temperature([(logits, truth)], prior=1.0, prior_rows=0)
    scaled = fit_temperature([(scale * logits, truth)], prior=1.0, prior_rows=0)
    assert scaled == pytest.approx(scale * plain, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 200), st.floats(0.1, 10))
def test_it_is_a_minimum_and_other_offsets_and_orders_do_not_change_it(seed: int, rows: int, prior: float):
    logits, truth = _drawn(rows, seed)
    found = fit_temperature([(logits, truth)], prior)
    imagined = softmax(logits, prior)

    def loss(temperature: float) -> float:
        p = np.log(softmax(logits, temperature))
        return float(-p[np.arange(rows), truth].sum() - PRIOR_ROWS / rows * (imagined * p).sum())

    assert loss(found) <= min(loss(t) for t in np.clip([found * 1.01, found / 1.01], 0.05, 20)) + 1e-9
    order = np.random.default_rng(seed).permutation(rows)
    offset = (logits + np.arange(rows, dtype=np.float64)[:, None])[order]
    assert fit_temperature([(offset, truth[order])], prior) == pytest.approx(found, rel=1e-4)
    halves = [(logits[: rows // 2], truth[: rows // 2]), (logits[rows // 2 :], truth[rows // 2 :])]
    assert fit_temperature(halves, prior) == pytest.approx(found, rel=1e-4)


def test_few_records_stay_near_the_prior_and_none_wrong_does_not_run_away():
    logits, _ = _drawn(300)
    assert fit_temperature([(logits, logits.argmax(axis=1))], prior=1.0) > 0.2
    assert fit_temperature([(logits[:1], logits[:1].argmax(axis=1))], prior=2.0) == pytest.approx(
        2.0, rel=0.2
    )
    assert fit_temperature([(logits, logits.argmin(axis=1))], prior=1.0) <= 20
    assert fit_temperature([(np.zeros((5, 3)), np.arange(5) % 3)], prior=1.7) == pytest.approx(1.7)


def test_each_subset_gets_its_own_temperature():
    found = _calibration(20_000)
    assert found.subsets["text"].temperature == pytest.approx(3.0, rel=0.05)
    assert found.subsets["image+text"].temperature == pytest.approx(3.0, rel=0.05)
    assert found.subsets["image"].temperature == pytest.approx(1.5, rel=0.05)
    assert (
        found.subsets["image+text"].rows < found.subsets["image"].rows < found.subsets[NOTHING].rows == 20_000
    )
    assert found.whole.ece_after < 0.02 < found.whole.ece_before
    assert found.whole.log_loss_after < found.whole.log_loss_before
    for fit in found.subsets.values():
        assert fit.log_loss_after <= fit.log_loss_before + 1e-6


def test_whole_is_what_records_are_told():
    logits, truth = _drawn(400, 3)
    both = np.ones((400, 2), dtype=bool)
    found = fit_calibration(
        {"image+text": 2 * logits}, 2 * logits, both, truth, FIELDS, dataset="d", split="val"
    )
    told = softmax(2 * logits, found.subsets["image+text"].temperature)
    assert found.whole.ece_after == pytest.approx(expected_calibration_error(truth, told), abs=1e-6)
    assert found.whole.log_loss_after == pytest.approx(log_loss(truth, told), abs=1e-6)


def test_no_record_is_refused():
    none = np.zeros((0, 3))
    with pytest.raises(DataError, match="'val' has no record to calibrate on"):
        fit_calibration(
            {"image": none}, none, np.zeros((0, 2), bool), np.zeros(0, int), FIELDS, dataset="", split="val"
        )


# --- thresholds ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 600), st.integers(0, 999), st.integers(1, 1000))
def test_cutoffs_count_what_is_at_least_so_sure(rows: int, seed: int, levels: int):
    rng = np.random.default_rng(seed)
    confidence = (rng.integers(0, levels, rows) / levels).astype(np.float32)
    correct = rng.random(rows) < confidence
    found = cutoffs(confidence, correct)
    assert 1 <= len(found) <= 200 and found[0].rows == rows
    assert [c.threshold for c in found] == sorted({c.threshold for c in found})
    for threshold, kept, right in found:
        sure = confidence >= np.float32(threshold)
        assert (kept, right) == (sure.sum(), correct[sure].sum())


def test_the_bound_is_clopper_and_pearsons():
    assert precision_bound(0, 10) == 0.0
    assert precision_bound(149, 149) == pytest.approx(0.05 ** (1 / 149))
    rng = np.random.default_rng(0)
    held = [precision_bound(int(k), 60) <= 0.9 for k in rng.binomial(60, 0.9, 4000)]
    assert np.mean(held) >= 0.95


def test_thresholds_rise_with_the_target_and_keep_it():
    found = _calibration()
    targets = [0.5, 0.7, 0.8, 0.9, 0.95]
    thresholds = [found.threshold(target) for target in targets]
    assert thresholds == sorted(thresholds) and len(set(thresholds)) > 2
    for target, threshold in zip(targets, thresholds, strict=True):
        (chosen,) = [c for c in found.cutoffs if c.threshold == threshold]
        assert chosen.correct / chosen.rows >= precision_bound(chosen.correct, chosen.rows) >= target
        lower = [c for c in found.cutoffs if c.threshold < threshold]
        assert all(precision_bound(c.correct, c.rows) < target for c in lower)


def test_a_precision_out_of_reach_says_what_is_in_reach():
    few = _calibration(40)
    with pytest.raises(
        UsageError, match=r"0\.98 is out of reach: of the 40 records of 'val'.* at least 149 pred"
    ) as e:
        few.threshold(0.98)
    best = float(str(e.value).split("at most ")[1].split(" ")[0])
    assert few.threshold(best) > 0
    with pytest.raises(UsageError, match="cannot be shown by any number of records"):
        few.threshold(1.0)


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_and_back():
    found = _calibration(100)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Calibration.from_json(json.loads(text)) == found
    assert len(text) < 20_000
    with pytest.raises(CheckpointError, match="version 9; this release reads version 1"):
        Calibration.from_json(found.to_json() | {"version": 9})
    assert dataclasses.replace(found, split="x") != found
