"""The page of a search, ended, under way, and of nothing but failures."""

from __future__ import annotations

from typing import Any

from xmodal_dist.report.page import self_contained
from xmodal_dist.report.search import SearchedTrial, render, verdict

SPACE = {
    "train.learning_rate": {"loguniform": [1e-4, 1e-2], "when": {}},
    "model.fusion": {"choice": ["late", "<concat>"], "when": {}},
    "model.fusion_rank": {"integer": [2, 8], "when": {"model.fusion": "<concat>"}},
}
IDENTITY = {"metrics": ["accuracy"], "search": {"space": SPACE, "scheduler": "asha", "seed": 0}}


def _trial(number: int, accuracy: float, state: str = "finished", **more: Any) -> SearchedTrial:
    values = {
        "train.learning_rate": 10 ** -(2 + number / 4),
        "model.fusion": "<concat>" if number else "late",
    }
    record = {
        "trial": number, "state": state, "reason": "", "values": values, "metrics": {"accuracy": accuracy},
        "epochs": 2, "seed": 0, "repeat_of": None, "wall_s": 3.0, "ended_s": float(number), "message": "", **more,
    }  # fmt: skip
    return SearchedTrial(
        number, record, [{"epoch": e, "val_accuracy": accuracy * (e + 1) / 2} for e in range(2)]
    )


RESULT: dict[str, Any] = {
    "metric": "accuracy", "best": {"trial": 1, "metrics": {"accuracy": 0.91}},
    "evidence": {"trial": 1, "gain": 0.11, "error": 0.021, "is_better": True},
    "choices": [{"trial": 1, "seeds": [0, 1], "mean": 0.905, "std": 0.005, "values": {}}],
    "pareto": [], "epochs": 6, "epochs_asked": 8,
    "cost": {"wall_s": 9.0, "cpu_hours": 0.5, "gpu_hours": 0.25, "cpu_hours_measured": None},
}  # fmt: skip


def test_a_search_that_has_ended() -> None:
    trials = [
        _trial(0, 0.8), _trial(1, 0.91), _trial(2, 0.4, "stopped", reason="asha"),
        _trial(3, 0.0, "failed", reason="diverged", metrics={}, message="loss is <nan>"),
        _trial(4, 0.9, repeat_of=1, seed=1),
    ]  # fmt: skip
    test = {"accuracy": 0.88, "macro_f1": 0.87, "rows": 400}
    shares = {"model.fusion": 0.7, "train.learning_rate": 0.3}
    page = render("mine", trials, IDENTITY, RESULT, shares, "train:\n  learning_rate: 0.001\n", test)
    self_contained(page)
    assert "88.0 %" in page and "80.0 % with the default settings" in page and "0.25 GPU-hours" in page
    assert "&lt;concat&gt;" in page and "<concat>" not in page and "loss is &lt;nan&gt;" in page
    assert "75 % of training every trial fully" in page and "seed 1 of trial 1" in page
    assert page.index("91.0 %</b>") < page.index("80.0 %</b>") < page.index("diverged")
    assert "better than the default settings beyond chance: by 11.0 % (standard error 2.1 %)" in page
    assert "learning_rate: 0.001" in page and page.count("<polyline") == 4


def test_a_search_under_way_and_one_in_which_all_failed() -> None:
    running = SearchedTrial(1, {}, [{"epoch": 0, "val_accuracy": 0.5}])
    page = render("mine", [_trial(0, 0.8), running], IDENTITY, None, {}, "", None)
    self_contained(page)
    assert "1 finished, 1 running" in page and "Too few trials" in page and "to copy" not in page
    failed = _trial(0, 0.0, "failed", reason="error", metrics={})
    page = render("mine", [SearchedTrial(0, failed.record, [])], IDENTITY, None, {}, "", None)
    assert "No trial has ended with a figure yet" in page
    loss = {**IDENTITY, "metrics": ["loss"]}
    trials = [_trial(n, 0.0, metrics={"loss": loss}) for n, loss in enumerate((0.9, 0.3))]
    page = render("mine", trials, loss, None, {}, "", None)
    assert page.index("0.300</b>") < page.index("0.900</b>")


def test_the_verdict_says_when_the_default_settings_stay_and_why() -> None:
    chance = {"trial": 3, "gain": 0.0109, "error": 0.0103, "is_better": False}
    said = verdict({"metric": "calibrated_loss", "evidence": chance})
    assert (
        "Trial 3 is ahead by 0.0109 (standard error 0.0103)" in said and "the default settings stay" in said
    )
    assert verdict({"metric": "loss", "evidence": None}) == ""
