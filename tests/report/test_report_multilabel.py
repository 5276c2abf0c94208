"""The chapter of an evaluation of label sets, on its own page and on that of its run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from xmodal_dist.evaluate import evaluate_label_sets
from xmodal_dist.report import run as run_page
from xmodal_dist.report import runs as runs_page
from xmodal_dist.report.evaluation import chapter
from xmodal_dist.report.page import self_contained

NAMES = ["<i>a</i>", "b", "c"]


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = rng.random((60, 3)) < [0.5, 0.2, 0.0]
    p = (0.3 * truth + 0.6 * rng.random((60, 3))).astype(np.float32)

    def sets(there: np.ndarray) -> list[list[str]]:
        return [[name for name, has in zip(NAMES, row, strict=True) if has] for row in there]

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(p.ravel()), 3)
    table = pa.table(
        {
            "id": [f"r{i}" for i in range(60)],
            "truth": pa.array(sets(truth), pa.list_(pa.string())),
            "labels": pa.array(sets(p >= 0.5), pa.list_(pa.string())),
            "probabilities": vectors,
            "modalities": [["x"]] * 60,
            "subset:x": vectors,
        }
    )
    return evaluate_label_sets(table, NAMES, np.full(3, 0.5)).metrics


def test_the_page_of_a_run_shows_label_sets_and_no_confusions(metrics: dict[str, Any]) -> None:
    lines = [
        {
            **{"event": "epoch", "epoch": e, "step": e, "train_loss": 1.0, "val_loss": 1.0, "val_rows": 60},
            "kept": e < 2,
            "val_mean_average_precision": 0.4 + 0.1 * (e == 1),
            "val_macro_f1": 0.2,
        }
        for e in range(3)
    ]
    run = run_page.Run("runs/tags", {"fields": {"x": {}}}, lines, evaluations={"test": metrics})
    assert run.best["epoch"] == 1
    page = run_page.render(run)
    self_contained(page)
    assert "Validation mean AP" in page and "whole set right" in page and "&lt;i&gt;a&lt;/i&gt;" in page
    assert "Confusion" not in page and "Abstaining" not in page
    compared = runs_page.render([run])
    self_contained(compared)
    assert "test mean AP" in compared and "validation accuracy" not in compared


def test_a_chapter_without_details_lacks_the_plots(metrics: dict[str, Any]) -> None:
    found = chapter("test", metrics, {})
    assert found["label_sets"] and found["reliability"] is None and found["precision_recall"] is None
    assert found["sentence"].endswith("is the mean average precision over 60 records.")
    assert [c["name"] for c in found["classes"]][-1] == "c", "a class without rows comes last"
