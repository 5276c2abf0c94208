"""Progress: a rate of the last minute, the time left at it, and a line where there is no terminal."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from xmodal_dist import progress
from xmodal_dist.progress import ConsoleProgress, Rate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_a_steady_rate_is_exact_from_the_first_call(clock: Callable[[float], None]) -> None:
    rate = Rate(done=500)
    for step in range(1, 200):
        clock(0.7)
        assert rate.update(500 + 70 * step) == pytest.approx(100)


def test_the_rate_forgets_what_is_old_and_falls_while_nothing_happens(
    clock: Callable[[float], None],
) -> None:
    rate, done = Rate(), 0
    for per_s in (1000, 10):
        for _ in range(300):
            clock(1)
            done += per_s
            found = rate.update(done)
        assert found == pytest.approx(per_s, rel=0.8 if per_s == 10 else 0.01)
    falling = []
    for _ in range(5):
        clock(60)
        falling.append(rate.update(done))
    assert falling == sorted(falling, reverse=True) and falling[-1] < 1


def test_plain_lines_come_every_ten_seconds_and_at_the_end(clock: Callable[[float], None]) -> None:
    shown = io.StringIO()
    with ConsoleProgress("scoring", Console(file=shown, width=200), before=100) as bar:
        for second in range(1, 26):
            clock(1)
            bar(100 + second * 4, 3, 300, workers=2)
        assert bar.rows_per_s == pytest.approx(4) and bar.left_s == pytest.approx(25)
        clock(25)
        bar(300, 3, 300, workers=1)
    assert shown.getvalue().splitlines() == [
        "scoring: 140/300 records, 4/s, 40 s left, 3 quarantined, 2 workers",
        "scoring: 180/300 records, 4/s, 30 s left, 3 quarantined, 2 workers",
        "scoring: 300/300 records, 4/s, 0 s left, 3 quarantined, 1 worker",
    ]


def test_a_job_that_does_not_move_has_no_end(clock: Callable[[float], None]) -> None:
    shown = io.StringIO()
    with ConsoleProgress("packing", Console(file=shown, width=200)) as bar:
        clock(30)
        bar(0, 0, 10)
        assert bar.left_s is None
        clock(3600)
        bar(1, 0, 20)
    assert "0/10 records, 0/s, time left unknown, 0 quarantined" in shown.getvalue()
    assert "19 h 00 min left" in shown.getvalue()


def test_a_terminal_gets_a_bar_with_the_same_figures() -> None:
    shown = io.StringIO()
    with ConsoleProgress("scoring", Console(file=shown, force_terminal=True, width=200)) as bar:
        bar(5, 1, 10, workers=3)
    assert "5/10" in shown.getvalue() and "1 quarantined, 3 workers" in shown.getvalue()
