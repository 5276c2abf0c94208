"""The sweep of the learning rate: what it reads from losses, and that it makes the steps of a run, without Ray."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.errors import UsageError, XmodalError
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.train.find_lr import RateSweep, find_learning_rate, read_sweep
from xmodal_dist.train.settings import TrainSettings


def _valley(rates: list[float], bottom: float) -> list[float]:
    """A loss that falls to its lowest at ``bottom`` and rises steeply beyond it."""
    away = [math.log10(rate / bottom) for rate in rates]
    return [1.0 + 0.2 * x**2 if x < 0 else 1.0 + x**2 for x in away]


@settings(max_examples=30, deadline=None)
@given(power=st.floats(-3, -1), seed=st.integers(0, 2**31))
def test_it_suggests_a_tenth_of_where_the_loss_is_lowest(power: float, seed: int) -> None:
    rates = np.geomspace(1e-5, 1.0, 100).tolist()
    noise = np.random.default_rng(seed).normal(0, 0.05, 100)
    found = read_sweep(rates, [a + b for a, b in zip(_valley(rates, 10**power), noise, strict=True)])
    assert abs(math.log10(found.suggestion) + 1 - power) < 0.6
    assert found.suggestion == pytest.approx(found.lowest_loss_at / 10, rel=0.05)


def test_a_loss_that_is_not_finite_ends_the_sweep_and_is_not_shown() -> None:
    found = read_sweep([1e-3, 1e-2, 1e-1], [2.0, 1.0, math.nan])
    assert found.diverged and found.losses == [2.0, 1.0] and len(found.rates) == len(found.smoothed) == 2
    with pytest.raises(XmodalError, match="not finite at the lowest rate"):
        read_sweep([1e-3], [math.inf])


def _sweep(
    dataset: str,
    model: ModelSettings | None = None,
    train: TrainSettings | None = None,
    fields: dict[str, Any] | None = None,
    **changed: Any,
) -> RateSweep:
    return find_learning_rate(
        dataset,
        fields=fields or {},
        model=model or ModelSettings(width=16),
        train=train or TrainSettings(batch_size=24, lanes=6),
        pipeline=PipelineSettings(window_rows=8),
        **{"num_steps": 40, **changed},
    )


def test_a_sweep_of_real_steps_goes_on_over_epochs_and_can_be_repeated(tiny_dataset: str) -> None:
    was_connected = ray.is_initialized()
    first, again = _sweep(tiny_dataset), _sweep(tiny_dataset)
    assert first == again
    assert len(first.losses) > 10 * 120 / 24 / 2, "more than an epoch's five steps"
    assert min(first.smoothed) < first.losses[0]
    assert 1e-5 <= first.suggestion < 0.1
    assert ray.is_initialized() == was_connected


def test_micro_batches_and_orders_of_adding_make_the_same_steps_with_mixup_and_balancing(
    tiny_dataset: str,
) -> None:
    model = ModelSettings(width=16, fusion="lowrank", balance="ogm")
    plain = TrainSettings(batch_size=24, lanes=6, loss="class_balanced", mixup_alpha=0.5)
    changes = [
        {},
        {"micro_batch_rows": 2},
        {"gradient_order": "fast"},
        {"gradient_order": "fast", "micro_batch_rows": 6},
    ]
    runs = [
        _sweep(tiny_dataset, model, plain.model_copy(update=change), num_steps=20, highest=1e-2).losses
        for change in changes
    ]
    for other in runs[1:]:
        assert other == pytest.approx(runs[0], abs=2e-3)


def test_fields_learn_at_their_own_multiples_of_the_rate(tiny_dataset: str) -> None:
    slow = {name: {"learning_rate_scale": 0.01} for name in ("picture", "caption", "weather")}
    usual, slowed = (_sweep(tiny_dataset, fields=fields, num_steps=20, highest=0.1) for fields in ({}, slow))
    assert usual.losses[0] == slowed.losses[0]
    assert min(usual.smoothed) < min(slowed.smoothed)


def test_a_sweep_that_is_none_is_refused(tiny_dataset: str) -> None:
    with pytest.raises(UsageError, match="0 < --lowest < --highest"):
        _sweep(tiny_dataset, lowest=0.1, highest=0.01)
    with pytest.raises(UsageError, match="at least 20"):
        _sweep(tiny_dataset, num_steps=5)
