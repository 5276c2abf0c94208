"""Who is stopped early, and who never is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_dist.train.settings import TrainSettings
from xmodal_dist.tune.schedulers import SparingScheduler, looks, make_scheduler
from xmodal_dist.tune.settings import Dimension, SearchSettings
from xmodal_dist.tune.space import Space
from xmodal_dist.tune.trial import SCORE, name_of

_EPOCHS = 8


@dataclass(frozen=True)
class _Trial:
    number: int

    @property
    def trial_id(self) -> str:
        return f"id-{self.number}"

    def __str__(self) -> str:
        return name_of(self.number)


def _epochs(scheduler: Any, number: int, score: float) -> int:
    """How many a trial may train that scores alike after each; others have ended by then."""
    trial = _Trial(number)
    scheduler.on_trial_add(None, trial)
    for epoch in range(1, _EPOCHS + 1):
        if scheduler.on_trial_result(None, trial, {"epoch": epoch, SCORE: score}) == scheduler.STOP:
            break
    scheduler.on_trial_remove(None, trial)
    return epoch


def test_the_runs_own_settings_measure_the_others_and_are_never_stopped() -> None:
    settings = SearchSettings(scheduler="asha", grace_epochs=2)
    scheduler = make_scheduler(settings, Space({}), TrainSettings(epochs=_EPOCHS))
    assert isinstance(scheduler, SparingScheduler)
    assert _epochs(scheduler, 0, 0.5) == _EPOCHS
    assert _epochs(scheduler, 1, 0.4) == 2, "worse than they at the first look"
    assert _epochs(scheduler, 2, 0.6) == _EPOCHS
    late = make_scheduler(settings, Space({}), TrainSettings(epochs=_EPOCHS), past=[[0.7] * _EPOCHS])
    assert _epochs(late, 0, 0.1) == _EPOCHS, "however bad they are"
    assert _epochs(late, 3, 0.65) == _EPOCHS, "the median of what was seen is 0.4"
    assert _epochs(late, 4, 0.3) == 2


def test_of_equal_draws_one_of_so_many_goes_on_at_each_look() -> None:
    for factor in (2, 4):
        settings = SearchSettings(scheduler="asha", grace_epochs=2, reduction_factor=factor)
        scheduler = make_scheduler(settings, Space({}), TrainSettings(epochs=4))
        order = np.random.default_rng(0).permutation(400)
        epochs = [_epochs(scheduler, number + 1, float(score)) for number, score in enumerate(order)]
        shares = [np.mean([e > look for e in epochs]) for look in (2, 3)]
        assert shares[0] == pytest.approx(1 / factor, rel=0.25)
        assert shares[1] == pytest.approx(shares[0] / factor, rel=0.5)


def test_a_trial_that_is_told_of_twice_is_not_measured_by_itself() -> None:
    scheduler = make_scheduler(
        SearchSettings(scheduler="asha", grace_epochs=1), Space({}), TrainSettings(epochs=_EPOCHS)
    )
    assert _epochs(scheduler, 1, 0.5) == _EPOCHS
    again = {"epoch": 1, SCORE: 0.1}
    assert scheduler.on_trial_result(None, _Trial(1), again) == scheduler.CONTINUE


@given(st.integers(1, 50), st.integers(1, 300))
def test_looks_come_ever_later_and_leave_the_last_epoch_alone(first: int, max_epochs: int) -> None:
    found = looks(first, max_epochs)
    assert (found[:1] or [max_epochs]) == [min(first, max_epochs)]
    gaps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert all(gap >= 1 for gap in gaps) and all(look < max_epochs for look in found)
    assert all(gap <= look / 4 + 1 for gap, look in zip(gaps, found, strict=False))


def test_the_first_look_waits_for_the_learning_rate_and_epochs_that_are_searched_count() -> None:
    train = TrainSettings(epochs=_EPOCHS, warmup_fraction=0.3)
    assert train.warmup_epochs == 3 and TrainSettings(epochs=2, warmup_fraction=0).warmup_epochs == 1
    scheduler = make_scheduler(SearchSettings(scheduler="asha"), Space({}), train)
    assert [_epochs(scheduler, number, -float(number)) for number in (0, 1)] == [_EPOCHS, 3]
    longer = Space({"train.epochs": Dimension(integer=(4, _EPOCHS))})
    scheduler = make_scheduler(
        SearchSettings(scheduler="asha", grace_epochs=5), longer, TrainSettings(epochs=4)
    )
    assert [_epochs(scheduler, number, -float(number)) for number in (0, 1)] == [_EPOCHS, 5]
