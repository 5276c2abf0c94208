"""On-the-fly modulation: who is ahead is slowed, the others are not, and nothing depends on how rows are shared out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xmodal_dist.batch import Batch
from xmodal_dist.model.classifier import CrossModalClassifier, ModelSettings
from xmodal_dist.train.balance import Balance

SETTINGS = ModelSettings(width=16, balance="ogm", balance_alpha=0.7)
CPU = torch.device("cpu")


def _batch(present: torch.Tensor, labels: torch.Tensor) -> Batch:
    rows = len(labels)
    return Batch({}, present, labels, torch.ones(rows), torch.arange(rows), torch.arange(rows))


def _logits(probability: torch.Tensor) -> torch.Tensor:
    """[B, M, 2] that give class 0 the probability [B, M]."""
    return torch.stack([probability.log(), (1 - probability).log()], dim=-1)


def test_the_field_that_is_ahead_is_slowed_by_how_far() -> None:
    balance = Balance(SETTINGS, 3, CPU)
    probability = torch.tensor([[0.9, 0.4, 0.2]]).repeat(6, 1)
    balance.add(
        _logits(probability), _batch(torch.ones(6, 3, dtype=torch.bool), torch.zeros(6, dtype=torch.int64))
    )
    ahead = 0.9 / 0.3
    assert balance.factors(1).tolist() == pytest.approx(
        [1 - math.tanh(0.7 * (ahead - 1)), 1.0, 1.0], abs=1e-5
    )


def test_what_is_absent_or_padding_does_not_count() -> None:
    balance = Balance(SETTINGS, 3, CPU)
    probability = torch.tensor([[0.8, 0.4, 0.9], [0.1, 0.9, 0.9]])
    present = torch.tensor([[True, True, False], [True, True, True]])
    balance.add(_logits(probability), _batch(present, torch.tensor([0, -1])))
    assert balance.factors(1).tolist() == pytest.approx([1 - math.tanh(0.7), 1.0, 1.0], abs=1e-5)
    nothing = Balance(SETTINGS, 3, CPU)
    assert nothing.factors(1).tolist() == [1.0, 1.0, 1.0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 29))
def test_the_factors_are_equal_to_the_bit_in_whatever_parts_rows_come(seed: int, cut: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, 3, 5, generator=generator)
    batch = _batch(
        torch.rand(30, 3, generator=generator) > 0.3, torch.randint(-1, 5, (30,), generator=generator)
    )
    found = []
    for parts in ([slice(0, 30)], [slice(cut, 30), slice(0, cut)]):
        balance = Balance(SETTINGS, 3, CPU)
        for part in parts:
            balance.add(logits[part], batch.slice(part.start, part.stop))
        found.append(balance.factors(1))
    assert torch.equal(*found)
    assert (found[0] > 0).all() and (found[0] <= 1).all()


def test_only_the_encoder_of_the_field_that_is_ahead_moves_less() -> None:
    torch.manual_seed(0)
    model = CrossModalClassifier({name: nn.Linear(4, 16) for name in "ab"}, 2, SETTINGS)
    balance = Balance(SETTINGS, 2, CPU)
    balance.add(
        _logits(torch.tensor([[0.9, 0.3]])), _batch(torch.ones(1, 2, dtype=torch.bool), torch.tensor([0]))
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with balance.slowed(model, 1), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    slow = 1 - math.tanh(0.7 * 2)
    for name, parameter in model.named_parameters():
        moved = slow if name.startswith(("_encoders.0", "norms.0")) else 1.0
        assert torch.allclose(parameter - before[name], torch.full_like(parameter, moved), atol=1e-5), name
