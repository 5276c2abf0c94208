"""The page that compares runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xmodal_dist import api
from xmodal_dist.errors import UsageError
from xmodal_dist.report.page import self_contained
from xmodal_dist.report.run import Run
from xmodal_dist.report.runs import render


def _run(name: str, accuracy: list[float], dataset: str = "d", **train: Any) -> Run:
    lines: list[dict[str, Any]] = []
    for epoch, value in enumerate(accuracy):
        kept = value >= max(accuracy[: epoch + 1])
        lines.append({"event": "step", "step": 10 * epoch, "loss": 1.0 - value})
        lines.append(
            {"event": "epoch", "epoch": epoch, "step": 10 * epoch, "kept": kept, "val_accuracy": value}
        )
    return Run(name, {"dataset": dataset, "train": {"seed": 0, **train}}, lines)


def test_runs_stand_in_the_order_of_their_best_epoch() -> None:
    page = render([_run("slow", [0.1, 0.2]), _run("early", [0.9, 0.3]), _run("steady", [0.4, 0.5])])
    self_contained(page)
    assert page.index(">early<") < page.index(">steady<") < page.index(">slow<")
    assert "90.0 %" in page and "0 of 2" in page


def test_only_settings_that_differ_are_shown() -> None:
    page = render([_run("a", [0.5], epochs=3, width=8), _run("b", [0.6], epochs=4, width=8)])
    assert "train.epochs" in page and "train.width" not in page and "train.seed" not in page


def test_runs_of_different_data_are_told_apart() -> None:
    assert "cannot be compared" in render([_run("a", [0.5]), _run("b", [0.5], dataset="other")])
    assert "cannot be compared" not in render([_run("a", [0.5]), _run("b", [0.5])])


def test_a_run_before_its_first_epoch_and_evaluations_of_some() -> None:
    evaluated = _run("a", [0.5])
    evaluated = Run(
        "a", evaluated.identity, evaluated.lines, {}, {"test": {"accuracy": 0.7, "macro_f1": 0.6}}
    )
    page = render([evaluated, Run("b", {"dataset": "d"}, [])])
    assert "test accuracy" in page and "70.0 %" in page


def test_runs_are_read_from_disk_and_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    for folder in ("x/run", "y/run"):
        run = tmp_path / folder
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"dataset": "d"}))
        line = {"event": "epoch", "epoch": 0, "kept": True, "val_accuracy": 0.5}
        (run / "metrics.jsonl").write_text(json.dumps(line))
    (tmp_path / "y/run/evaluation/test").mkdir(parents=True)
    (tmp_path / "y/run/evaluation/test/metrics.json").write_text(json.dumps({"accuracy": 0.25}))
    page = Path(api.report([str(tmp_path / f) for f in ("x/run", "y/run")], str(tmp_path / "runs.html")))
    text = page.read_text()
    assert "x/run" in text and "y/run" in text and "25.0 %" in text
    with pytest.raises(UsageError, match=r"not a training run: it has no run\.json"):
        api.report([str(tmp_path)], str(tmp_path / "runs.html"))
    with pytest.raises(UsageError, match="named twice"):
        api.report([str(tmp_path / "x/run")] * 2, str(tmp_path / "runs.html"))
