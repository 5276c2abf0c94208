"""B3: a simulated accelerator that takes 50 ms a step, on 1, 2, 4 and 8 workers: does it ever wait for data?

The whole training job runs, Ray Train, streams, logs and checkpoints; only the optimizer step is exchanged for a sleep,
after which ranks wait for each other. Utilisation is accelerator time over wall time from the first step of an epoch to
its last, as MLPerf Storage counts it; beside it the same with one batch replayed, which is what the machine's
scheduler and the collectives leave possible. The first batch counts from when the last worker is up; the gap is between
the last step of an epoch and the first of the next, the checkpoint between them included.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace

from benchmarks.harness import Figure, Options, Run, Side, run_rounds
from benchmarks.jobs import epochs_of, job_figure, require_whole, training_side
from benchmarks.training_data import demo_dataset

__all__ = ["run", "utilisation"]

_SLEEP_S = 0.05
_EPOCHS = 3
_BATCH_SIZE = 64
_UTILISATION = {1: 0.97, 2: 0.97, 4: 0.97, 8: 0.93}
_FIRST_BATCH_S = 2.0
_GAP_S = 0.2
_ROUNDS = 3


def run(options: Options) -> list[Figure]:
    """Utilisation, first batch and gap for every number of workers."""
    dataset, rows = demo_dataset(options.cache, copies=4)
    train = {"epochs": _EPOCHS, "batch_size": _BATCH_SIZE}

    def check(side: Side, run: Run) -> None:
        require_whole(side, run, rows, _BATCH_SIZE, _EPOCHS)

    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for num_workers, goal in _UTILISATION.items():
            sides = [
                training_side(
                    f"{num_workers} workers, {source}", dataset, folder, num_workers,
                    step=_SLEEP_S, source=source, train=train,
                )
                for source in ("real", "replay")
            ]  # fmt: skip
            rounds = replace(options, pairs=min(_ROUNDS, options.pairs))
            runs = run_rounds(sides, rounds, check)
            ours, synthetic = (runs[side.name] for side in sides)
            ceiling = {"synthetic": round(statistics.median(map(utilisation, synthetic)), 4)}
            name, total = f"b3/{num_workers} workers", rows * _EPOCHS
            figures += [
                job_figure(
                    f"{name}: utilisation", ours, utilisation, goal, rows=total, unit="share", notes=ceiling
                ),
                job_figure(
                    f"{name}: first batch",
                    ours,
                    _first_batch_s,
                    _FIRST_BATCH_S,
                    rows=total,
                    unit="s",
                    better="lower",
                ),
                job_figure(
                    f"{name}: gap of epochs", ours, _gap_s, _GAP_S, rows=total, unit="s", better="lower"
                ),
            ]
    return figures


def utilisation(run: Run, epochs: int = _EPOCHS, sleep_s: float = _SLEEP_S) -> float:
    """Of the worst rank: seconds of simulated compute over seconds from an epoch's first step to its last."""
    shares = []
    for rank in run.result["ranks"]:
        timelines = epochs_of(rank, epochs)
        wall_s = sum(epoch[-1][1] - epoch[0][0] for epoch in timelines)
        shares.append(sum(map(len, timelines)) * sleep_s / wall_s)
    return min(shares)


def _first_batch_s(run: Run) -> float:
    """From the last worker's start to the last first step: they begin together, after their process group is made."""
    up_s = max(rank["up_s"] for rank in run.result["ranks"])
    return float(max(rank["steps"][0][0] for rank in run.result["ranks"]) - up_s)


def _gap_s(run: Run) -> float:
    """The longest from the last step of an epoch to the first of the next, on any rank."""
    gaps = []
    for rank in run.result["ranks"]:
        epochs = epochs_of(rank, _EPOCHS)
        gaps += [after[0][0] - before[-1][1] for before, after in zip(epochs, epochs[1:], strict=False)]
    return max(gaps)
