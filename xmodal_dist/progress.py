"""Progress of a job over records on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ConsoleProgress", "Report"]

_SECONDS_BETWEEN_LINES = 5.0

Report = Callable[[int, int, int], None]
"""Called with records done (rejected ones included), records rejected, and records in all."""


class ConsoleProgress:
    """A :data:`Report` that shows count, rate and time left; use it as a context manager.

    Args:
        what: the activity, for example ``packing``.
        console: where to show it, by default stderr.
        before: records that an earlier run had done; they count as done, but not for the rate.
    """

    def __init__(self, what: str, console: Console | None = None, before: int = 0) -> None:
        self._what = what
        self._before = before
        self._console = console or Console(stderr=True)
        self._begin = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} records/s, {task.fields[rejected]} rejected"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=None, rate=0.0, rejected=0)

    def __call__(self, done: int, rejected: int, total: int) -> None:
        """Show the state; cheap enough to be called for every record."""
        now = time.monotonic()
        rate = (done - self._before) / max(now - self._begin, 1e-3)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, total=total, rate=rate, rejected=rejected)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES or done == total:
            self._last_line = now
            left_s = (total - done) / max(rate, 1e-3)
            line = f"{self._what}: {done}/{total} records, {rate:.0f}/s, {left_s:.0f} s left, {rejected} rejected"
            self._console.print(line, highlight=False, soft_wrap=True)

    def __enter__(self) -> ConsoleProgress:
        self._begin = self._last_line = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()
