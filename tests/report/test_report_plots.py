"""Figures: well-formed, deterministic, honest about long series."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from xmodal_dist.report import plots


@pytest.mark.parametrize("num_classes", [2, 12, 30, 50, 130])
def test_confusion_of_any_size(num_classes):
    names = [f"${i}^<&> \N{GRINNING FACE} class with a long name" for i in range(num_classes)]
    svg = plots.confusion(np.eye(num_classes, dtype=int).tolist(), names)
    ElementTree.fromstring(svg)
    assert len(svg) < 400_000
    assert svg == plots.confusion(np.eye(num_classes, dtype=int).tolist(), names)


def test_confusion_names_the_classes_and_counts():
    svg = plots.confusion([[41, 3], [0, 57]], ["cat", "dog"])
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]
    assert {"41", "3", "57", "cat", "dog"} <= set(texts)
    assert "0" not in texts


def test_class_without_rows():
    ElementTree.fromstring(plots.confusion([[0, 0], [1, 2]], ["a", "b"]))


def test_long_series_are_averaged_not_cut():
    n = 100_000
    svg = plots.curves("Loss", [plots.Series("loss", range(n), [1.0] * n)], "step")
    ElementTree.fromstring(svg)
    assert len(svg) < 60_000


def test_curves_of_one_point():
    ElementTree.fromstring(plots.curves("a <b>", [plots.Series("x", [1], [0.5])], "step", percent=True))


def test_smoothing_keeps_constants_and_lengths():
    assert plots.smoothed([]) == []
    assert plots.smoothed([2.0]) == [2.0]
    assert plots.smoothed([3.0] * 101) == pytest.approx([3.0] * 101)
    ramp = plots.smoothed(list(range(200)))
    assert len(ramp) == 200 and ramp == sorted(ramp)


def test_reliability_with_empty_bins_and_histogram():
    bins = {"rows": [0, 4, 0], "confidence": [None, 0.5, None], "accuracy": [None, 0.75, None]}
    ElementTree.fromstring(plots.reliability(bins))
    ElementTree.fromstring(plots.histogram("h", [0, 5, 0, 1_000_000], "confidence"))
    ElementTree.fromstring(plots.histogram("h", [0] * 10, "confidence"))
