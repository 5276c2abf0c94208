"""A search as it goes, on stderr: a live table on a terminal; elsewhere lines, as trials end and once a minute."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from xmodal_dist.settings import shown
from xmodal_dist.train.settings import TrainSettings
from xmodal_dist.tune.choice import choose
from xmodal_dist.tune.engine import Running
from xmodal_dist.tune.ledger import TrialRecord
from xmodal_dist.tune.settings import SearchSettings
from xmodal_dist.tune.trial import objectives_of

__all__ = ["LiveTable", "short_values"]

_MOST_ROWS = 12
_REFRESH_S = 0.5
_SECONDS_BETWEEN_LINES = 60.0


class LiveTable:
    """A :class:`xmodal_dist.tune.engine.Watcher`; use it as a context manager.

    Args:
        settings: of the search.
        train: of the training, for its epochs.
        console: where to show it, by default stderr.
    """

    def __init__(
        self, settings: SearchSettings, train: TrainSettings, console: Console | None = None
    ) -> None:
        self._settings, self._epochs = settings, train.epochs
        self._metrics = settings.optimised(train.monitor)
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._told: set[int] | None = None
        self._began_s = self._shown_s = time.monotonic()
        self._known = 0

    def __enter__(self) -> LiveTable:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, running: Sequence[Running], records: Mapping[int, TrialRecord]) -> None:
        """Show the state."""
        if self._told is None:  # those of a search that is resumed are no news
            self._told, self._known = set(records), len(records)
        news = [record for number, record in records.items() if number not in self._told]
        self._told |= set(records)
        for record in news:
            self._print(self._line(record))
        now_s = time.monotonic()
        if self._console.is_terminal:
            if news or now_s - self._shown_s > _REFRESH_S:
                self._shown_s = now_s
                self._live.update(self._view(running, records), refresh=True)
        elif now_s - self._shown_s > _SECONDS_BETWEEN_LINES:
            self._shown_s = now_s
            self._print(self._headline(running, records))

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _line(self, record: TrialRecord) -> str:
        name = self._metrics[0]
        what = f"{name} {record.metrics[name]:.4f}" if record.metrics else record.message.split("\n")[0][:100]
        state = f"{record.state} ({record.reason})" if record.reason else record.state
        repeat = (
            f" repeats {record.repeat_of} with seed {record.seed}" if record.repeat_of is not None else ""
        )
        head = f"trial {record.trial:3d}{repeat}  {state}, {record.epochs} epochs, {what}"
        return f"{head}  {short_values(record.values)}"

    def _view(self, running: Sequence[Running], records: Mapping[int, TrialRecord]) -> Group:
        name = self._metrics[0]
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        for column in ("trial", "state", "epochs", name):
            table.add_column(column, no_wrap=True)
        table.add_column("settings", no_wrap=True, overflow="ellipsis", ratio=1)  # what the others leave
        for trial in running[:_MOST_ROWS]:
            value = f"{trial.best[name]:.4f}" if trial.best else "-"
            table.add_row(
                str(trial.planned.number),
                "running",
                f"{trial.epoch}/{self._epochs}",
                value,
                short_values(trial.planned.values),
            )
        return Group(Text(self._headline(running, records)), table)

    def _headline(self, running: Sequence[Running], records: Mapping[int, TrialRecord]) -> str:
        states = [record.state for record in records.values()]
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("finished", "stopped", "failed"))
        best = "nothing yet"
        if any(record.metrics and record.state != "failed" for record in records.values()):
            first = choose(records.values(), self._metrics)[0]
            best = f"{self._metrics[0]} {first.mean:.4f} (trial {first.trials[0].trial})"
        values = [t.best for t in running if t.best]
        if values:
            ahead = max(values, key=lambda found: objectives_of(found, self._metrics)[0])
            best += f"; best running {ahead[self._metrics[0]]:.4f}"
        return f"best {best}; {len(running)} running, {counts}; {self._left(len(records))}"

    def _left(self, ended: int) -> str:
        passed_s = time.monotonic() - self._began_s
        lefts = []
        if self._settings.budget_minutes:
            lefts.append(self._settings.budget_minutes * 60 - passed_s)
        done = ended - self._known
        if self._settings.trials and done:
            lefts.append(passed_s / done * (self._settings.trials - ended))
        return f"about {max(0.0, min(lefts)) / 60:.0f} min left" if lefts else "time left unknown"


def short_values(values: Mapping[str, Any]) -> str:
    """The settings of a trial on one line, names without their sections."""
    parts = []
    for name, value in values.items():
        path = name.split(".")
        parts.append(f"{'.'.join(path[1:] if path[0] == 'fields' else path[-1:])}={shown(value)}")
    return " ".join(parts)
