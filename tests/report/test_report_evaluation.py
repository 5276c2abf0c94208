"""The evaluation page."""

from __future__ import annotations

import numpy as np
import pytest

from xmodal_dist.metrics import classification_metrics, reliability_bins
from xmodal_dist.report.evaluation import Example, render
from xmodal_dist.report.page import self_contained

RUN = {"bundle": "runs/a/bundle", "split": "test"}
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
    return {"reliability": bins, "reliability_uncalibrated": None, "abstention": abstention}


@pytest.mark.parametrize("num_classes", [2, 10, 90])
def test_page_is_self_contained_and_deterministic(num_classes):
    metrics, curves = _results([f"class {i}" for i in range(num_classes)])
    html = render(metrics, [], curves, RUN)
    self_contained(html)
    assert html == render(metrics, [], curves, RUN)
    assert "<script" not in html
    assert "runs/a/bundle" in html
    for section in (
        "Confusion matrix",
        "Reliability",
        "Classes",
        "Worst errors",
        "What each modality contributes",
    ):
        assert section in html
    assert "12.3 percentage points more accurate" in html
    assert ("60 of 90 classes are shown" in html) == (num_classes == 90)


def test_worst_errors_show_fragments_as_given_and_escape_the_rest():
    metrics, curves = _results(["<i>a</i>", "b"])
    fragments = {"image": '<img src="data:image/png;base64,AA" alt="">', "audio": None}
    html = render(metrics, [Example("<id>", "<i>a</i>", "b", 0.987, fragments)], curves, RUN)
    self_contained(html)
    assert '<img src="data:image/png;base64,AA" alt="">' in html
    assert '<span class="missing">missing</span>' in html
    assert "&lt;id&gt;" in html and "<id>" not in html
    assert "<i>a</i>" not in html
    assert "98.7 %" in html


def test_page_without_subsets_or_errors():
    metrics, curves = _results(["a", "b"], subsets=False)
    metrics["confusion_matrix"] = [[40, 0], [0, 40]]
    html = render(metrics, [], curves, {})
    assert "What each modality contributes" not in html
    assert "Most frequent confusions" not in html
    assert "None: every prediction is right." in html


def test_undefined_metrics_are_dashes():
    truth, probabilities = np.array([0, 0]), np.array([[0.9, 0.1], [0.8, 0.2]])
    one = classification_metrics(truth, probabilities, ["a", "b"])
    nothing = {"per_subset": {}, "best_single": None, "fusion_gain": None} | UNCALIBRATED
    html = render(one | nothing, [], _curves(truth, probabilities), {})
    assert '<span class="label">AUROC</span><span class="value">–</span>' in html
    assert "nan" not in html.lower().replace("nano", "")


def test_calibration_is_shown_before_and_after_and_thresholds_with_what_they_come_to():
    metrics, curves = _results(["a", "b"])
    plain = render(metrics, [], curves, {})
    assert "before calibration" not in plain and "Accuracy with fields withheld" not in plain
    metrics["uncalibrated"] = {"ece": 0.1234, "log_loss": 0.5}
    metrics["withheld"] = [{"share": 0.0, "accuracy": 0.9}, {"share": 0.9, "accuracy": 0.4}]
    reached = {"target_precision": 0.9, "threshold": 0.6543, "coverage": 0.812, "precision": 0.934}
    beyond = {"target_precision": 0.99, "threshold": None, "coverage": None, "precision": None}
    metrics["abstention"] = [reached, beyond]
    curves["reliability_uncalibrated"] = curves["reliability"]
    html = render(metrics, [], curves, {})
    self_contained(html)
    for text in ("0.1234 before calibration", "0.6543", "81.2 %", "93.4 %", "out of reach", "0.032"):
        assert text in html
    assert "Accuracy with fields withheld" in html and "Abstaining" in html
