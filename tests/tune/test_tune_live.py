"""What a search shows while it goes on."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from xmodal_dist.errors import XmodalError
from xmodal_dist.train.settings import TrainSettings
from xmodal_dist.tune import live
from xmodal_dist.tune.choice import best_seed, choose, pareto
from xmodal_dist.tune.engine import Running
from xmodal_dist.tune.ledger import Planned, TrialRecord
from xmodal_dist.tune.live import LiveTable
from xmodal_dist.tune.settings import SearchSettings


def _ended(trial: int, accuracy: float, **more: object) -> TrialRecord:
    figures = {"accuracy": accuracy, "parameters": 1000.0 * trial}
    values = {"fields.image.encoder": "cnn", "train.learning_rate": 0.00123456}
    return TrialRecord(trial, "finished", "", values, figures, 3, 4, **more)  # type: ignore[arg-type]


FAILED = TrialRecord(
    2, "failed", "diverged", {}, message="the training loss of epoch 0 is nan; lower [it]\nmore"
)


def test_lines_for_those_who_log_and_a_table_on_a_terminal() -> None:
    running = [
        Running(Planned(3, {"model.width": 64}, 0), 2, {"accuracy": 0.75}),
        Running(Planned(4, {}, 0), 0, {}),
    ]
    known = {0: _ended(0, 0.8)}
    for terminal in (False, True):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=160)
        settings = SearchSettings(trials=8, budget_minutes=10)
        with LiveTable(settings, TrainSettings(epochs=9, monitor="accuracy"), console) as table:
            table([], known)
            table(running, {**known, 1: _ended(1, 0.9, repeat_of=0, seed=5), 2: FAILED})
        shown = text.getvalue()
        assert "trial   0" not in shown, "a trial of before a resume is no news"
        assert "trial   1 repeats 0 with seed 5  finished, 4 epochs, accuracy 0.9000" in shown
        assert "image.encoder=cnn learning_rate=0.00123" in shown
        assert "failed (diverged), 0 epochs, the training loss of epoch 0 is nan; lower [it]" in shown
        assert ("2/9" in shown and "best accuracy 0.8500 (trial 0); best running 0.7500" in shown) == terminal
        assert ("2 running, 2 finished, 0 stopped, 1 failed" in shown) == terminal
        assert ("min left" in shown) == terminal


def test_those_who_log_hear_once_a_minute_how_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(s=0)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock.s))
    text = io.StringIO()
    settings, train = SearchSettings(budget_minutes=10), TrainSettings(epochs=9, monitor="accuracy")
    with LiveTable(settings, train, Console(file=text, width=160)) as table:
        for clock.s in range(0, 200, 10):
            table([Running(Planned(3, {}, 0), 2, {"accuracy": 0.75})], {0: _ended(0, 0.8)})
    lines = text.getvalue().splitlines()
    assert [line.rsplit("; ", 1)[1] for line in lines] == ["about 9 min left", "about 8 min left"]
    assert all("best accuracy 0.8000 (trial 0); best running 0.7500; 1 running" in line for line in lines)


def test_long_settings_leave_room_for_the_figures() -> None:
    values = {f"fields.picture.setting_{n}": n for n in range(20)}
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    with LiveTable(SearchSettings(trials=8), TrainSettings(epochs=9, monitor="accuracy"), console) as table:
        table([], {})
        table([Running(Planned(3, values, 0), 2, {"accuracy": 0.75})], {0: _ended(0, 0.8)})
    assert all(figure in text.getvalue() for figure in ("trial", "running", "2/9", "0.7500", "setting_0=0"))


def test_the_best_is_that_of_most_seeds_then_of_the_highest_mean() -> None:
    records = [
        _ended(0, 0.80), _ended(1, 0.95), _ended(3, 0.90), FAILED,
        _ended(4, 0.84, repeat_of=0, seed=1), _ended(5, 0.70, repeat_of=3, seed=1),
    ]  # fmt: skip
    choices = choose(records, ("accuracy",))
    assert [choice.trials[0].trial for choice in choices] == [0, 3, 1]
    assert choices[0].mean == pytest.approx(0.82) and choices[2].std is None
    assert best_seed(choices[0], ("accuracy",)).trial == 4
    assert choose(records[:2], ("parameters",))[0].trials[0].trial == 0, "fewer are better"
    front = pareto(records, ("accuracy", "parameters"))
    assert [record.trial for record in front] == [0, 1]
    with pytest.raises(XmodalError, match="trial 2: diverged: the training loss"):
        choose([FAILED], ("accuracy",))
