"""What the benchmarks of the training job share: sides, the timelines of their ranks, and figures from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness import Figure, Run, Side, figure_of, require

__all__ = ["LANES", "epochs_of", "job_figure", "require_whole", "steps_per_epoch", "training_side"]

LANES = 8
_SAMPLE_EVERY_S = 5.0
"""Reading the memory of a process stops it for milliseconds, which every rank then waits for."""


def training_side(
    name: str,
    dataset: str,
    folder: str,
    num_workers: int,
    *,
    step: float | str,
    source: str,
    train: dict[str, Any],
    kill_after_steps: int | None = None,
    nodes: int = 0,
) -> Side:
    """The real job; ``step``, ``source``, ``kill_after_steps`` and ``nodes`` as in ``ours/training.py``."""
    request = {
        "dataset": dataset,
        "folder": folder,
        "num_workers": num_workers,
        "settings": {"train": {"lanes": LANES, **train}},
        "kill_after_steps": kill_after_steps,
        "step": step,
        "input": source,
        "nodes": nodes,
    }
    return Side(name, "benchmarks.ours.training", request, sample_every_s=_SAMPLE_EVERY_S)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Global steps in which every lane of the split is used up."""
    return math.ceil(math.ceil(rows / LANES) / (batch_size // LANES))


def epochs_of(rank: dict[str, Any], epochs: int) -> list[list[tuple[float, float]]]:
    """Begin and end of every step of one rank, by epoch."""
    steps = [(float(begin), float(end)) for begin, end in rank["steps"]]
    size = len(steps) // epochs
    return [steps[start : start + size] for start in range(0, len(steps), size)]


def require_whole(side: Side, run: Run, rows: int, batch_size: int, epochs: int) -> None:
    """Every rank took every step, and a run that was not fed a replayed batch trained on every record once an epoch."""
    steps = steps_per_epoch(rows, batch_size) * epochs
    ranks = run.result["ranks"]
    require(len(ranks) == side.request["num_workers"], f"{side.name}: not every rank told")
    for rank in ranks:
        require(len(rank["steps"]) == steps, f"{side.name}: {len(rank['steps'])} steps, expected {steps}")
    if side.request["input"] == "real":
        read = run.result["goodput"]["records"]
        require(read == rows * epochs, f"{side.name}: {read} records, expected {rows * epochs}")


def job_figure(
    name: str, runs: Sequence[Run], measure: Callable[[Run], float], goal: float, **how: Any
) -> Figure:
    """The median of a measure over runs of the job; ``how`` as in :func:`figure_of`."""
    return figure_of(name, (runs, "job"), [measure(run) for run in runs], goal, **how)
