"""Progress of a job over records on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

__all__ = ["ConsoleProgress", "Rate", "Report"]

_SECONDS_BETWEEN_LINES = 10.0
_RATE_OVER_S = 60.0

Report = Callable[[int, int, int], None]
"""Called with records done (rejected ones included), records rejected, and records in all."""


class Rate:
    """Records a second, of late: what is ``over_s`` old counts for 1/e.

    The mean of the rates between calls with weights that decay with age, and from the start a true mean: nothing is
    assumed of the time before.

    Args:
        done: records done when the clock starts.
        over_s: seconds that it looks back.
    """

    def __init__(self, done: int = 0, over_s: float = _RATE_OVER_S) -> None:
        self._over_s = over_s
        self._done, self._at_s = done, time.monotonic()
        self._records = self._seconds = 0.0

    def update(self, done: int) -> float:
        """The rate, with ``done`` records by now; call it while nothing happens as well, so that it falls."""
        now = time.monotonic()
        passed_s = now - self._at_s
        decay = math.exp(-passed_s / self._over_s)
        self._records = self._records * decay + done - self._done
        self._seconds = self._seconds * decay + passed_s
        self._done, self._at_s = done, now
        return self._records / max(self._seconds, 1e-3)


class ConsoleProgress:
    """A :data:`Report` that shows count, rate, time left and rejected records; use it as a context manager.

    Args:
        what: the activity, for example ``packing``.
        console: where to show it, by default stderr.
        before: records that an earlier run had done; they count as done, but not for the rate.
    """

    def __init__(self, what: str, console: Console | None = None, before: int = 0) -> None:
        self._what = what
        self._before = before
        self._console = console or Console(stderr=True)
        self._last_line = time.monotonic()
        self._rate = Rate(before)
        self.rows_per_s = 0.0
        """Records a second over the last minute, as last shown."""
        self.left_s: float | None = None
        """Seconds to the end at that rate; None while nothing moves."""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=None, state="")

    def __call__(self, done: int, rejected: int, total: int, *, workers: int | None = None) -> None:
        """Show the state; cheap enough to be called for every record. ``workers``: how many are alive, if known."""
        self.rows_per_s = self._rate.update(done)
        self.left_s = (total - done) / self.rows_per_s if self.rows_per_s > 0 else None
        now = time.monotonic()
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, total=total, state=self._state(rejected, workers))
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES or done == total:
            self._last_line = now
            line = f"{self._what}: {done}/{total} records, {self._state(rejected, workers)}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def _state(self, rejected: int, workers: int | None) -> str:
        left = "time left unknown" if self.left_s is None else f"{_duration(self.left_s)} left"
        crew = "" if workers is None else f", {workers} {'worker' if workers == 1 else 'workers'}"
        return f"{self.rows_per_s:.0f}/s, {left}, {rejected} quarantined{crew}"

    def __enter__(self) -> ConsoleProgress:
        self._last_line = time.monotonic()
        self._rate = Rate(self._before)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()


def _duration(seconds: float) -> str:
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
