"""B2: training on CPUs, image + text + audio, on 1 and 2 ranks, against what the processors allow.

The bound is K / (sum of the stages' CPU-seconds per record): reading and decoding, measured alone in one thread, and
the optimizer step (forward, backward, update, gradients), its thread's CPU time while one batch is replayed, so that
nothing reads beside it. One rank computes in one thread, so its bound is the smaller of that and 1 / compute. Rate:
records a second from an epoch's first step to its last. Beside it the same job fed one batch again and again.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from functools import partial

from benchmarks.harness import Figure, Options, Run, Side, require, run_rounds
from benchmarks.jobs import LANES, epochs_of, job_figure, require_whole, training_side
from benchmarks.training_data import demo_dataset

__all__ = ["run"]

_EPOCHS = 3
_BATCH_SIZE = 64
_GOAL = 0.92
_CORES = 2


def run(options: Options) -> list[Figure]:
    """The share of the bound and of the replayed run's rate, on 1 and 2 ranks."""
    dataset, rows = demo_dataset(options.cache, copies=2)
    train = {"epochs": _EPOCHS, "batch_size": _BATCH_SIZE}
    cores = min(_CORES, len(os.sched_getaffinity(0)))

    def check(side: Side, run: Run) -> None:
        if side.module.endswith("reading_alone"):
            read = run.result["records"]
            require(read == rows, f"{side.name}: {read} records, expected {rows}")
        else:
            require_whole(side, run, rows, _BATCH_SIZE, _EPOCHS)

    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for num_workers in (1, 2):
            reading = Side(f"{num_workers} ranks, reading alone", "benchmarks.ours.reading_alone", {
                "dataset": dataset, "batch_size": _BATCH_SIZE, "lanes": LANES,
            })  # fmt: skip
            real, replay = (
                training_side(
                    f"{num_workers} ranks, {source}", dataset, folder, num_workers,
                    step="real", source=source, train=train,
                )
                for source in ("real", "replay")
            )  # fmt: skip
            runs = run_rounds([reading, real, replay], options, check)
            read_s = statistics.median(r.result["cpu_s"] / r.result["records"] for r in runs[reading.name])
            compute_s = statistics.median(map(_compute_cpu_s, runs[replay.name]))
            bound = min(num_workers / compute_s, cores / (read_s + compute_s))
            synthetic = statistics.median(map(_rate, runs[replay.name]))
            notes = {
                "reading_cpu_ms": round(read_s * 1e3, 4),
                "compute_cpu_ms": round(compute_s * 1e3, 4),
                "bound_records_per_s": round(bound, 1),
                "records_per_s": round(statistics.median(map(_rate, runs[real.name])), 1),
                "replayed_records_per_s": round(synthetic, 1),
            }
            total = rows * _EPOCHS
            for what, limit in (("bound", bound), ("one batch replayed", synthetic)):
                figures.append(
                    job_figure(
                        f"b2/{num_workers} ranks: share of {what}", runs[real.name],
                        partial(_share, limit),
                        _GOAL, rows=total, unit="share", notes=notes,
                    )
                )  # fmt: skip
    return figures


def _share(limit: float, run: Run) -> float:
    return _rate(run) / limit


def _rate(run: Run) -> float:
    """Records a second of all ranks, from an epoch's first step to its last."""
    rank = run.result["ranks"][0]
    epochs = epochs_of(rank, _EPOCHS)
    steps = sum(len(epoch) for epoch in epochs)
    wall_s = sum(epoch[-1][1] - epoch[0][0] for epoch in epochs)
    return steps * _BATCH_SIZE / wall_s


def _compute_cpu_s(run: Run) -> float:
    """CPU-seconds of optimizer steps for a record, over all ranks."""
    steps = len(run.result["ranks"][0]["steps"])
    return float(sum(rank["compute_cpu_s"] for rank in run.result["ranks"]) / (steps * _BATCH_SIZE))
