"""Validation: figures are exact on any number of ranks, and near the scores themselves."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from xmodal_dist.batch import Batch
from xmodal_dist.errors import XmodalError
from xmodal_dist.multilabel import from_outcomes, mean_average_precision, outcomes
from xmodal_dist.train.validation import LabelSetTotals, Totals

ROWS, CLASSES = 96, 20


class _Said(NamedTuple):
    fused: torch.Tensor


class _Model:
    """Says the logits that it was given, row after row."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits, self.at = logits, 0

    def __call__(self, inputs: Any, present: torch.Tensor) -> _Said:
        self.at += len(present)
        return _Said(self.logits[self.at - len(present) : self.at])


def _some() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, CLASSES, generator=generator) * 3 - 2
    return logits, (torch.rand(ROWS, CLASSES, generator=generator) < logits.sigmoid()).to(torch.int8)


def _totals(logits: torch.Tensor, labels: torch.Tensor, rows_at_once: int | None) -> dict[str, Any]:
    totals, model = LabelSetTotals(CLASSES, torch.device("cpu"), rows_at_once), _Model(logits)
    for start in range(0, len(labels), 32):
        part = labels[start : start + 32]
        n = len(part)
        ids = torch.where(part[:, 0] < -1, -1, torch.arange(n))
        batch = Batch({}, torch.ones(n, 1, dtype=torch.bool), part.clamp(min=-1), torch.ones(n), ids, ids)
        totals.add(model, (), batch)  # type: ignore[arg-type]
    return totals.reduce(1, int((labels[:, 0] >= -1).sum()))


@pytest.mark.parametrize("temperature", [1.0, 3.0, 0.5])
def test_the_calibrated_loss_does_not_know_how_sure_a_model_claims_to_be(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(400, CLASSES, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    totals, ids = Totals(CLASSES, torch.device("cpu")), torch.arange(400)
    batch = Batch({}, torch.ones(400, 1, dtype=torch.bool), labels, torch.ones(400), ids, ids)
    totals.add(_Model(logits / temperature), (), batch)  # type: ignore[arg-type]
    found = totals.reduce(1, 400)
    losses = torch.nn.functional.cross_entropy(logits / temperature, labels, reduction="none").double()
    assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert found["loss_error"] == pytest.approx(float(losses.std(correction=0)) / 20, rel=1e-4)
    at_one = torch.nn.functional.cross_entropy(logits, labels).item()
    assert found["calibrated_loss"] == pytest.approx(at_one, rel=0.01)
    assert found["calibrated_loss"] <= found["loss"] + 1e-9
    if temperature == 3.0:
        assert found["loss"] > 1.1 * found["calibrated_loss"]


def test_figures_are_those_of_the_scores() -> None:
    logits, labels = _some()
    found = _totals(logits, labels, None)
    assert found["mean_average_precision"] == pytest.approx(
        mean_average_precision(labels.numpy(), logits.numpy()), abs=0.003
    )
    sums = from_outcomes(outcomes(labels.numpy(), (logits >= 0).numpy()))
    assert {name: found[name] for name in sums} == sums
    assert found["subset_accuracy"] == np.mean(((logits >= 0) == (labels > 0)).all(dim=1).numpy())
    assert _totals(logits, labels, 8) == pytest.approx(found)


def test_padding_is_left_out_and_rejected_records_are_counted() -> None:
    logits, labels = _some()
    expected = _totals(logits[:80], labels[:80], None)
    labels[80:90] = -1  # could not be decoded
    labels[90:] = -2  # padding
    found = _totals(logits, labels, 4)
    assert (found.pop("rows"), found.pop("rows_rejected")) == (80, 10)
    assert found == pytest.approx({k: v for k, v in expected.items() if k not in ("rows", "rows_rejected")})
    totals = LabelSetTotals(CLASSES, torch.device("cpu"))
    with pytest.raises(XmodalError, match="validation saw 0"):
        totals.reduce(1, 5)


def test_a_model_that_diverged_gives_a_loss_that_says_so() -> None:
    logits, labels = _some()
    logits[3] = torch.nan
    logits[5] = torch.inf
    found = _totals(logits, labels, None)
    assert not np.isfinite(found["loss"]) and 0 <= found["mean_average_precision"] <= 1
