"""The evaluation page."""

from __future__ import annotations

import numpy as np
import pytest

from xmodal_dist.metrics import classification_metrics, reliability_bins
from xmodal_dist.report.evaluation import Example, render
from xmodal_dist.report.page import self_contained

RUN = {"bundle": "runs/a/bundle", "split": "test"}


def _results(names, rows=80, subsets=True):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, len(names), rows)
    logits = rng.normal(size=(rows, len(names))) + 2 * np.eye(len(names))[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    metrics = classification_metrics(truth, probabilities, names)
    single = {"rows": rows, "rows_present": 9, "accuracy": 0.5, "accuracy_present": None, "macro_f1": 0.4}
    per_subset = {"image": single | {"log_loss": 1.0}, "image+text": single | {"log_loss": 0.5}}
    extra = {"per_subset": per_subset, "best_single": "image", "fusion_gain": 0.123}
    if not subsets:
        extra = {"per_subset": {}, "best_single": None, "fusion_gain": None}
    return metrics | extra, {"reliability": reliability_bins(truth, probabilities)}


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
    one = classification_metrics(np.array([0, 0]), np.array([[0.9, 0.1], [0.8, 0.2]]), ["a", "b"])
    curves = {"reliability": reliability_bins(np.array([0, 0]), np.array([[0.9, 0.1], [0.8, 0.2]]))}
    html = render(one | {"per_subset": {}, "best_single": None, "fusion_gain": None}, [], curves, {})
    assert '<span class="label">AUROC</span><span class="value">–</span>' in html
    assert "nan" not in html.lower().replace("nano", "")
