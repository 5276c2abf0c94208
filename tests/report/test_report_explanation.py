"""The page of an explanation, and the pictures on it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xmodal_dist.report.evaluation import Example
from xmodal_dist.report.explanation import render
from xmodal_dist.report.heat import overlay, words
from xmodal_dist.report.page import self_contained


@dataclass(frozen=True)
class _View:
    name: str
    frames: np.ndarray
    upward: bool = False


def _group(mean: float | None) -> dict[str, Any]:
    return {"rows": 2, "mean_absolute": None if mean is None else abs(mean), "mean_signed": mean}


def _field(mean: float) -> dict[str, Any]:
    groups = {"all": _group(mean), "right": _group(mean), "wrong": _group(None)}
    return {"rows_present": 2, "mean_absolute_present": abs(mean), **groups}


def _content(fields: dict[str, Any], contributions: dict[str, float | None]) -> dict[str, Any]:
    record = {
        "id": "<r1>", "truth": "b", "label": "<i>a</i>", "probability": 0.8, "baseline": 0.5,
        "contributions": contributions, "sentence": "Predicted <i>a</i>.", "fields": fields,
    }  # fmt: skip
    means = {name: 0.1 * (-1) ** m for m, name in enumerate(contributions)}
    return {
        "split": "test", "rows": 3, "rows_split": 9, "rows_rejected": 1, "first_rejected": "r", "accuracy": 0.5,
        "mean_probability": 0.8, "mean_baseline": 0.5,
        "explained_by": {"image": "heat", "text": "words", "table": "columns"},
        "fields": {name: _field(mean) for name, mean in means.items()},
        "classes": {"<i>a</i>": {"rows": 3, "mean_signed": means, "mean_absolute": means}},
        "importance_repeats": 5,
        "columns": [
            {"field": "table", "column": "<h>", "accuracy_drop": -0.0001, "accuracy_drop_sd": 0.002,
             "log_loss_rise": None, "log_loss_rise_sd": None},
        ],
        "records": [record],
    }  # fmt: skip


def _page(fields: dict[str, Any], contributions: dict[str, float | None], fragments: Any, views: Any) -> str:
    content = _content(fields, contributions)
    html = render(
        content, [Example("<r1>", "b", "<i>a</i>", 0.8, fragments)], {"<r1>": views}, {"split": "test"}
    )
    self_contained(html)
    return html


def test_a_card_shows_each_field_in_its_way_and_escapes_what_is_not_its_own() -> None:
    fields = {
        "image": {"method": "saliency", "map": [[[0.0, 1.0], [0.5, 0.0]]]},
        "text": {"words": [["<b>", 0.2], ["", 0.0], ["cut", None]], "total": 0.21, "gap": -0.01},
        "table": {"columns": {"<h>": "<9>", "w": None}},
    }
    fragments = {"image": "<em>picture</em>", "text": "plain", "table": "9", "audio": None}
    shares = {"image": 0.3, "text": -0.1, "table": 0.0, "audio": None}
    html = _page(fields, shares, fragments, {"image": _View("pixels", np.zeros((1, 4, 4, 3), np.uint8))})
    assert "<em>picture</em><img" in html and "input gradients, as nothing is convolved here" in html
    assert "&lt;b&gt;</span>" in html and "the words add up to +20.0 of +21.0 points" in html
    assert 'title="+20.0 points"' in html and 'class="unseen" title="not seen by the model">cut' in html
    assert "&lt;9&gt;" in html and "<i>a</i>" not in html and "<r1>" not in html
    assert "−10.0" in html and '<td class="n">missing</td>' in html
    assert "0.0 ± 0.2" in html and "−0.0" not in html
    assert "of 9 in test; 1 could not be read" in html


@pytest.mark.parametrize(
    ("detail", "note"),
    [
        ({"method": None, "map": None}, "no gradient reaches it"),
        ({"method": "grad-cam", "map": None}, "no part of it speaks for the predicted class"),
        ({"words": [["a", None]], "total": None, "gap": None}, "its tokens cannot be attributed"),
    ],
)
def test_what_cannot_be_explained_says_so(detail: dict[str, Any], note: str) -> None:
    html = _page({"image": detail}, {"image": 0.1}, {"image": "the value"}, {})
    assert note in html and "the value" in html and 'class="heat"' not in html


def _pixels(markup: str) -> np.ndarray:
    data = re.search(r'src="data:image/png;base64,([^"]+)"', markup)
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))))


def test_heat_is_red_where_it_is_hot_and_leaves_the_rest() -> None:
    picture = np.full((1, 20, 20, 3), 128, np.uint8)
    heat = np.zeros((1, 4, 4))
    heat[0, 0, 3] = 1
    drawn = _pixels(overlay(_View("pixels", picture), heat.tolist())).astype(int)
    redness = drawn[..., 0] - drawn[..., 2]
    assert redness[:20, -20:].mean() > 60 and abs(redness[-40:, :40]).max() == 0
    assert (drawn[-1, 0] == 128).all()


def test_a_spectrogram_has_its_first_row_at_the_bottom() -> None:
    heat = np.zeros((1, 4, 8))
    heat[0, 0, 0] = 1
    drawn = _pixels(overlay(_View("spectrogram", np.full((1, 16, 64), 255, np.uint8), True), heat.tolist()))
    assert drawn[-1, 0, 2] < 150 and drawn[0, 0].min() > 240 and drawn.shape[1] == 300


def test_a_clip_is_shown_as_at_most_six_frames() -> None:
    frames = np.zeros((30, 10, 10, 3), np.uint8)
    drawn = _pixels(overlay(_View("frames", frames), np.zeros((15, 2, 2)).tolist()))
    assert drawn.shape[1] == 6 * 144 + 5 * 4
    assert _pixels(overlay(_View("frames", frames[:1]), np.zeros((1, 1, 1)).tolist())).shape[1] == 144


def test_long_texts_are_cut_and_counted() -> None:
    html = words([(f"w{i}", 0.0) for i in range(1500)])
    assert "and 1,100 more words" in html and html.count('class="word"') == 400
