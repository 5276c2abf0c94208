"""Records looked at closely: fields are told apart, and the probabilities explained are those of the bundle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.explain.models import train_sample
from xmodal_dist.bundle import Bundle
from xmodal_dist.calibrate import Calibration, SubsetFit
from xmodal_dist.explain.closely import COLUMNS, HEAT, WORDS, look_at, methods
from xmodal_dist.explain.columns import Part, permutation_importance

HOW = {"picture": HEAT, "caption": WORDS, "weather": COLUMNS}


def test_fields_are_told_apart_by_what_they_hold(trained: Bundle, tiny_dataset: str) -> None:
    assert methods(trained, train_sample(trained, tiny_dataset, 20).table) == HOW


def test_only_fields_that_are_there_are_looked_at(trained: Bundle, tiny_dataset: str) -> None:
    seen = train_sample(trained, tiny_dataset, 16)
    for look, present in zip(look_at(trained, seen, HOW), seen.present, strict=True):
        there = [name for name, shown in zip(HOW, present, strict=True) if shown]
        assert list(look.record["fields"]) == there and list(look.views) == there[: int(present[0])]
        assert [name for name, value in look.record["contributions"].items() if value is not None] == there


def test_calibrated_probabilities_are_explained(trained: Bundle, tiny_dataset: str) -> None:
    """So hot that all classes are alike whatever is shown: then nothing contributes, no word and no column."""
    fit = SubsetFit(1e6, 1, 0.0, 0.0, 0.0, 0.0)
    lukewarm = dataclasses.replace(
        trained, calibration=Calibration({"+".join(HOW): fit}, 1e6, fit, (), "", "val")
    )
    seen = train_sample(lukewarm, tiny_dataset, 16)
    for look in look_at(lukewarm, seen, HOW):
        assert look.record["probability"] == pytest.approx(1 / 3, abs=1e-4)
        assert all(abs(value or 0.0) < 1e-4 for value in look.record["contributions"].values())
        assert abs(look.record["fields"].get("caption", {"total": 0.0})["total"]) < 1e-4
    truth = np.zeros(16, dtype=np.int64)
    part = Part(seen.batch.present, seen.outputs)
    for line in permutation_importance(lukewarm, lukewarm.specs[2], seen.table, [part], truth):
        assert abs(line["log_loss_rise"]) < 1e-4
