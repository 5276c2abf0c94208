"""Who is stopped early, and who never is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xmodal_dist.tune.schedulers import SparingScheduler, make_scheduler
from xmodal_dist.tune.settings import SearchSettings
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
    scheduler = make_scheduler(settings, Space({}), _EPOCHS)
    assert isinstance(scheduler, SparingScheduler)
    assert _epochs(scheduler, 0, 0.5) == _EPOCHS
    assert _epochs(scheduler, 1, 0.4) == 2, "worse than they at the first look"
    assert _epochs(scheduler, 2, 0.6) == _EPOCHS
    late = make_scheduler(settings, Space({}), _EPOCHS, past=[[0.7] * _EPOCHS])
    assert _epochs(late, 0, 0.1) == _EPOCHS, "however bad they are"
    assert _epochs(late, 3, 0.65) == _EPOCHS, "the median of what was seen is 0.4"
    assert _epochs(late, 4, 0.3) == 2
