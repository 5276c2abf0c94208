"""What the benchmarks of the training job share: sides, the timelines of their ranks, and figures from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

from benchmarks.harness import Figure, Run, Side

__all__ = ["LANES", "epochs_of", "figure_of", "steps_per_epoch", "training_side"]

LANES = 8


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
) -> Side:
    """The real job; ``step``, ``source`` and ``kill_after_steps`` as in ``ours/training.py``."""
    request = {
        "dataset": dataset,
        "folder": folder,
        "num_workers": num_workers,
        "settings": {"train": {"lanes": LANES, **train}},
        "kill_after_steps": kill_after_steps,
        "step": step,
        "input": source,
    }
    return Side(name, "benchmarks.ours.training", request)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Global steps in which every lane of the split is used up."""
    return math.ceil(math.ceil(rows / LANES) / (batch_size // LANES))


def epochs_of(rank: dict[str, Any], epochs: int) -> list[list[tuple[float, float]]]:
    """Begin and end of every step of one rank, by epoch."""
    steps = [(float(begin), float(end)) for begin, end in rank["steps"]]
    size = len(steps) // epochs
    return [steps[start : start + size] for start in range(0, len(steps), size)]


def figure_of(
    name: str,
    runs: Sequence[Run],
    measure: Callable[[Run], float],
    goal: float,
    *,
    rows: int,
    unit: str,
    better: Literal["higher", "lower"] = "higher",
    notes: dict[str, Any] | None = None,
) -> Figure:
    """The median of a measure over runs of the job, with the worst beside it; ``rows`` of a whole run."""
    values = [measure(run) for run in runs]
    jobs = [run.regions["job"] for run in runs]
    return Figure(
        name=name,
        ratio=round(statistics.median(values), 4),
        goal=goal,
        unit=unit,
        better=better,
        cpu_ms_per_record=round(statistics.median(j.cpu_s for j in jobs) * 1e3 / rows, 4),
        peer_cpu_ms_per_record=None,
        wall_s=round(statistics.median(j.wall_s for j in jobs), 3),
        peak_memory_bytes=max(j.peak_memory_bytes for j in jobs),
        n={"records": rows, "pairs": len(runs)},
        versions={"ours": runs[0].versions},
        notes={"worst": round((min if better == "higher" else max)(values), 4), **(notes or {})},
    )
