"""The evaluation page."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from xmodal_dist.metrics import classification_metrics, reliability_bins
from xmodal_dist.precision_recall import precision_recall
from xmodal_dist.report.evaluation import Example, chapter, render
from xmodal_dist.report.page import self_contained

ENVIRONMENT = {
    "started": "2030-01-02T03:04:05+00:00", "command": "xmodal evaluate <x>", "host": "h", "system": "Linux",
    "cpu": "CPU", "cores": 2, "memory_bytes": 1 << 33, "accelerators": [], "python": "3.11", "cluster": None,
    "packages": {"torch": "2.13"}, "git": {"commit": "0123456789abcdef", "changed": True},
}  # fmt: skip
ABOUT = {
    "split": "test", "bundle": "runs/a/bundle", "dataset": "data/d", "fingerprint": "f" * 64,
    "dataset_fingerprint": "d" * 64, "environment": ENVIRONMENT, "wall_s": 3.5,
}  # fmt: skip
UNCALIBRATED = {"withheld": None, "uncalibrated": None, "abstention": []}


def _results(names, rows=80, subsets=True):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, len(names), rows)
    logits = rng.normal(size=(rows, len(names))) + 2 * np.eye(len(names))[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    metrics = classification_metrics(truth, probabilities, names)
    single = {"rows": rows, "rows_present": 9, "accuracy": 0.5, "accuracy_present": None, "macro_f1": 0.4}
    single["ece"] = 0.0321
    per_subset = {"image": single | {"log_loss": 1.0}, "image+text": single | {"log_loss": 0.5}}
    extra = {"per_subset": per_subset, "best_single": "image", "fusion_gain": 0.123}
    if not subsets:
        extra = {"per_subset": {}, "best_single": None, "fusion_gain": None}
    return metrics | extra | UNCALIBRATED, _curves(truth, probabilities)


def _curves(truth, probabilities):
    abstention = {"threshold": [0.3, 0.9], "coverage": [1.0, 0.5], "precision": [0.8, 0.95]}
    bins = reliability_bins(truth, probabilities)
    names = [f"<c{i}>" for i in range(probabilities.shape[1])]
    _, found = precision_recall(np.arange(len(names)) == truth[:, None], probabilities, names)
    calibration = {"reliability": bins, "reliability_uncalibrated": None}
    return {**calibration, "precision_recall": found, "abstention": abstention}


def _page(metrics, worst, curves):
    return render(metrics, {**ABOUT, "curves": curves, "worst": [dataclasses.asdict(e) for e in worst]})


@pytest.mark.parametrize("num_classes", [2, 10, 90])
def test_page_is_self_contained_and_deterministic(num_classes):
    metrics, curves = _results([f"class {i}" for i in range(num_classes)])
    html = _page(metrics, [], curves)
    self_contained(html)
    assert html == _page(metrics, [], curves)
    assert "<script" not in html
    assert "runs/a/bundle" in html
    for section in (
        "Confusion matrix",
        "Reliability",
        "Precision and recall",
        "Classes",
        "Worst errors",
        "What each modality contributes",
    ):
        assert section in html
    assert "12.3 percentage points more accurate" in html
    assert "git commit 0123456789ab, with changes that are not committed" in html
    assert "xmodal evaluate &lt;x&gt;" in html and len(html) < 1_000_000
    assert ("60 of 90 classes are shown" in html) == (num_classes == 90)


def test_worst_errors_show_fragments_as_given_and_escape_the_rest():
    metrics, curves = _results(["<i>a</i>", "b"])
    fragments = {"image": '<img src="data:image/png;base64,AA" alt="">', "audio": None}
    html = _page(metrics, [Example("<id>", "<i>a</i>", "b", 0.987, fragments)], curves)
    self_contained(html)
    assert '<img src="data:image/png;base64,AA" alt="">' in html
    assert '<span class="missing">missing</span>' in html
    assert "&lt;id&gt;" in html and "<id>" not in html
    assert "<i>a</i>" not in html
    assert "98.7 %" in html


def test_page_without_subsets_or_errors():
    metrics, curves = _results(["a", "b"], subsets=False)
    metrics["confusion_matrix"] = [[40, 0], [0, 40]]
    html = _page(metrics, [], curves)
    assert "What each modality contributes" not in html
    assert "Most frequent confusions" not in html
    assert "None: every prediction is right." in html


def test_undefined_metrics_are_dashes():
    truth, probabilities = np.array([0, 0]), np.array([[0.9, 0.1], [0.8, 0.2]])
    one = classification_metrics(truth, probabilities, ["a", "b"])
    nothing = {"per_subset": {}, "best_single": None, "fusion_gain": None} | UNCALIBRATED
    html = _page(one | nothing, [], _curves(truth, probabilities))
    assert '<span class="label">AUROC</span><span class="value">–</span>' in html
    assert "nan" not in html.lower().replace("nano", "")


def test_calibration_is_shown_before_and_after_and_thresholds_with_what_they_come_to():
    metrics, curves = _results(["a", "b"])
    plain = _page(metrics, [], curves)
    assert "before calibration" not in plain and "Accuracy with fields withheld" not in plain
    metrics["uncalibrated"] = {"ece": 0.1234, "log_loss": 0.5}
    metrics["withheld"] = [{"share": 0.0, "accuracy": 0.9}, {"share": 0.9, "accuracy": 0.4}]
    reached = {"target_precision": 0.9, "threshold": 0.6543, "coverage": 0.812, "precision": 0.934}
    beyond = {"target_precision": 0.99, "threshold": None, "coverage": None, "precision": None}
    metrics["abstention"] = [reached, beyond]
    curves["reliability_uncalibrated"] = curves["reliability"]
    html = _page(metrics, [], curves)
    self_contained(html)
    for text in ("0.1234 before calibration", "0.6543", "81.2 %", "93.4 %", "out of reach", "0.032"):
        assert text in html
    assert "Accuracy with fields withheld" in html and "Abstaining" in html


def test_an_evaluation_of_an_earlier_release_shows_its_figures_and_says_what_is_missing():
    metrics, _ = _results(["a", "b"])
    for name in ("average_precision", "withheld", "uncalibrated", "abstention"):
        metrics.pop(name, None)
    found = chapter("test", metrics, {})
    assert found["precision_recall"] is None and found["worst"] == [] and not found["has_details"]
    assert found["title"] == "Test" and found["anchor"] == "split-test"
    assert found["num_errors"] > 0 and found["confusion"]
