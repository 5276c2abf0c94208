"""Progress of a scoring run on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

__all__ = ["Progress"]

_LINE_EVERY_S = 5.0


class Progress:
    """Counts rows as their units are committed.

    Args:
        rows: rows of the whole input.
        done: rows that were committed before this command.
    """

    def __init__(self, rows: int, done: int) -> None:
        self._rows, self._before, self._done, self._bad = rows, done, done, 0
        self._began_s = self._shown_s = time.monotonic()
        self._console = Console(file=sys.stderr)
        columns = (TextColumn("score"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(
            *columns,
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("starting workers", total=rows, completed=done)

    def __enter__(self) -> Progress:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away and leave a last line."""
        self._bar.stop()
        self._line()

    def add(self, rows: int, bad: int) -> None:
        """A unit was committed: its rows, and how many of them were rejected."""
        self._done += rows
        self._bad += bad
        self._bar.update(
            self._task, completed=self._done, description=f"{self._rate():.0f}/s, {self._bad} quarantined"
        )
        if not self._console.is_terminal and time.monotonic() - self._shown_s > _LINE_EVERY_S:
            self._shown_s = time.monotonic()
            self._line()

    def _rate(self) -> float:
        return (self._done - self._before) / max(time.monotonic() - self._began_s, 1e-9)

    def _line(self) -> None:
        rate = self._rate()
        left = f", {(self._rows - self._done) / rate:.0f} s left" if rate and self._done < self._rows else ""
        text = f"score: {self._done} of {self._rows} records, {rate:.0f}/s{left}, {self._bad} quarantined"
        self._console.print(text, highlight=False)
