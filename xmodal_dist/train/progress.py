"""A live line of a run on stderr: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["show_progress"]

_POLL_S = 0.5
_FIGURES = {"val_accuracy": "accuracy", "val_mean_average_precision": "mAP"}


def show_progress(read: Callable[[], list[dict[str, Any]]], stop: threading.Event) -> None:
    """Poll a run's metrics lines until ``stop`` is set, and show what is new."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("starting workers", total=None)
        shown = 0
        while True:
            last_look = stop.wait(_POLL_S)
            lines = read()
            for line in lines[shown:]:
                _show(line, bar, task, console)
            shown = len(lines)
            if last_look:
                return


def _show(line: dict[str, Any], bar: Progress, task: Any, console: Console) -> None:
    if line["event"] == "start":
        bar.update(task, total=line["steps_per_epoch"] * line["epochs"], completed=line["step"])
        at = f"from step {line['step']}" if line["step"] else "from the start"
        console.print(f"train: {len(line['workers'])} workers, {at}", highlight=False)
    elif line["event"] == "step":
        bar.update(task, completed=line["step"], description=f"loss {line['loss']:.3f}")
    else:
        bar.update(task, completed=line["step"])
        console.print(_epoch_line(line), highlight=False)


def _epoch_line(line: dict[str, Any]) -> str:
    parts = [f"epoch {line['epoch']:3d}", f"{line['records']} records", f"loss {line['train_loss']:.4f}"]
    if "val_loss" in line:
        shown = next((words, line[name]) for name, words in _FIGURES.items() if name in line)
        parts += [f"val loss {line['val_loss']:.4f}", f"{shown[0]} {shown[1]:.4f}"]
    return "  ".join([*parts, f"{line['time_s']:.0f} s"])
