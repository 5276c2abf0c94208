"""Contributions over a split, and in plain words."""

from __future__ import annotations

import numpy as np
import pytest

from xmodal_dist.explain.contributions import by_field, points, sentence, summarise

FIELDS, CLASSES = ["image", "text"], ["cat", "dog", "owl"]


def _summary(rows: int = 40) -> tuple[dict, np.ndarray]:
    rng = np.random.default_rng(0)
    present = rng.random((rows, 2)) > 0.2
    contributions = rng.normal(size=(rows, 2)) * present
    predicted, truth = rng.integers(0, 2, rows), rng.integers(-1, 2, rows)
    return summarise(contributions, present, predicted, truth, FIELDS, CLASSES), contributions


def test_groups_add_up_to_the_whole() -> None:
    found, contributions = _summary()
    for m, name in enumerate(FIELDS):
        groups = found["fields"][name]
        for key in ("mean_signed", "mean_absolute"):
            parts = sum(groups[g][key] * groups[g]["rows"] for g in ("right", "wrong"))
            classes = sum(c[key][name] * c["rows"] for c in found["classes"].values())
            assert parts == pytest.approx(groups["all"][key] * 40) == pytest.approx(classes)
        assert groups["all"]["mean_signed"] == pytest.approx(contributions[:, m].mean())
        there = groups["mean_absolute_present"] * groups["rows_present"]
        assert there == pytest.approx(groups["all"]["mean_absolute"] * 40)
    assert set(found["classes"]) == {"cat", "dog"}


def test_no_rows_of_a_group_have_no_mean() -> None:
    one = np.ones(1, dtype=np.int64)
    found = summarise(np.zeros((1, 2)), np.array([[True, False]]), one, one, FIELDS, CLASSES)
    assert found["fields"]["text"]["mean_absolute_present"] is None
    assert found["fields"]["image"]["wrong"] == {"rows": 0, "mean_absolute": None, "mean_signed": None}


def test_absent_fields_have_none() -> None:
    found = by_field(np.array([[0.2, 0.0]]), np.array([[True, False]]), FIELDS)
    assert found == [{"image": 0.2, "text": None}]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123, "+12"), (-0.5, "−50"), (0.0123, "+1.2"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0997, "+10")],
)
def test_points(value: float, text: str) -> None:
    assert points(value) == text


def test_the_sentence_names_every_field_once_and_the_verdict() -> None:
    shares = {"image": 0.52, "text": -0.031, "audio": 0.001, "table": None, "clip": None}
    assert sentence("cat", "cat", 0.97, 0.33, shares) == (
        "Predicted cat with 97 %, which is right. image (+52 points) spoke for it, text (−3.1) spoke against it. "
        "audio made no difference. table and clip are missing. With nothing shown it would have 33 %."
    )
    nothing = sentence("cat", "owl", 0.3, 0.3, {"image": None})
    assert nothing == (
        "Predicted cat with 30 %, which is wrong: it is owl. image is missing. With nothing shown it would have 30 %."
    )
