"""Permutation importance: what the model takes from a column, and nothing where it takes nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.explain.models import train_sample
from xmodal_dist.bundle import Bundle
from xmodal_dist.explain.columns import Part, permutation_importance
from xmodal_dist.explain.sample import Seen, held
from xmodal_dist.model.classifier import encoded_rows


@pytest.fixture(scope="module")
def seen(trained: Bundle, tiny_dataset: str) -> Seen:
    return train_sample(trained, tiny_dataset)


def _importance(bundle: Bundle, seen: Seen, table: pa.Table, present: torch.Tensor) -> list[dict]:
    truth = [bundle.classes.index(label) for label in seen.table.column("label").to_pylist()]
    part = Part(
        present, {name: output[: _shown(present, i)] for i, (name, output) in enumerate(seen.outputs.items())}
    )
    return permutation_importance(bundle, bundle.specs[2], table, [part], np.array(truth))


def _shown(present: torch.Tensor, field: int) -> int:
    """How many rows the field's encoder would see."""
    return len(encoded_rows(present[:, field]))


def test_a_column_that_tells_the_class_matters_where_nothing_else_does(trained: Bundle, seen: Seen) -> None:
    alone = seen.batch.present.clone()
    alone[:, :2] = False
    height, day = _importance(trained, seen, seen.table, alone)
    assert (height["field"], height["column"], day["column"]) == ("weather", "height", "kind_of_day")
    assert height["accuracy_drop"] > 0.2 and height["log_loss_rise"] > 0.2 and height["accuracy_drop_sd"] > 0
    assert abs(day["accuracy_drop"]) < height["accuracy_drop"] / 2
    assert _importance(trained, seen, seen.table, alone) == [height, day]


def test_a_constant_column_costs_nothing(trained: Bundle, seen: Seen) -> None:
    place = seen.table.column_names.index("kind_of_day")
    table = seen.table.set_column(place, "kind_of_day", pa.array(["wet"] * len(seen.table)))
    _, day = _importance(trained, seen, table, seen.batch.present)
    assert day["accuracy_drop"] == day["log_loss_rise"] == day["accuracy_drop_sd"] == 0


def test_held_encoders_give_what_they_gave_and_run_again_afterwards(trained: Bundle, seen: Seen) -> None:
    encoder = trained.model.encoders["picture"]
    with pytest.raises(RuntimeError, match="out of the context"), held(trained.model, seen.outputs):
        assert encoder({}) is seen.outputs["picture"]
        raise RuntimeError("out of the context")
    with pytest.raises(KeyError):
        encoder({})
