"""R: one of two workers dies by SIGKILL at 10, 50 and 90 % of an epoch; the job recovers by itself.

It must end with the undisturbed run's weights; not one batch may be read only to be skipped; and what is trained again,
since the last checkpoint, must be little. The processor time of the whole job, the start of new workers included, is
given beside it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from benchmarks.harness import Figure, Options, Run, require, run_side, say
from benchmarks.jobs import job_figure, steps_per_epoch, training_side
from benchmarks.training_data import demo_dataset

__all__ = ["run"]

_EPOCHS = 2
_BATCH_SIZE = 64
_CHECKPOINT_EVERY_STEPS = 10
_SHARES = (0.1, 0.5, 0.9)
_MAX_DIFFERENCE = 1e-9
_MAX_EXTRA = 0.05


def run(options: Options) -> list[Figure]:
    """Difference of weights, batches read to be skipped, and steps trained again, for every kill."""
    dataset, rows = demo_dataset(options.cache, copies=4)
    steps = steps_per_epoch(rows, _BATCH_SIZE)
    train = {"epochs": _EPOCHS, "batch_size": _BATCH_SIZE, "checkpoint_every_steps": _CHECKPOINT_EVERY_STEPS}
    figures = []
    with tempfile.TemporaryDirectory() as folder:

        def once(name: str, kill_after_steps: int | None) -> Run:
            side = training_side(
                name,
                dataset,
                folder,
                2,
                step="real",
                source="real",
                train=train,
                kill_after_steps=kill_after_steps,
            )
            done = run_side(side, options)
            say(f"  {name}: CPU-s {done.regions['job'].cpu_s:.1f}")
            return done

        clean = once("undisturbed", None)
        for share in _SHARES:
            kill_at = round(share * steps)
            killed = once(f"killed at {share:.0%}", kill_at)
            _require_recovered(killed, kill_at)
            figures += _figures(f"r/killed at {share:.0%}", clean, killed, kill_at, steps * _EPOCHS, rows)
    return figures


def _require_recovered(killed: Run, kill_at: int) -> None:
    marker = Path(killed.result["bundle"]).parent / "killed"
    require(marker.exists(), f"no worker was killed after {kill_at} steps")


def _figures(name: str, clean: Run, killed: Run, kill_at: int, steps: int, rows: int) -> list[Figure]:
    repeated = kill_at + len(killed.result["ranks"][0]["steps"]) - steps
    skipped = max(rank["taken"] - len(rank["steps"]) for rank in killed.result["ranks"])
    extra_cpu = killed.regions["job"].cpu_s / clean.regions["job"].cpu_s - 1
    total = rows * _EPOCHS
    return [
        job_figure(
            f"{name}: largest difference of weights", [killed], lambda r: _difference(clean, r), _MAX_DIFFERENCE,
            rows=total, unit="", better="lower",
        ),
        job_figure(
            f"{name}: batches read to be skipped", [killed], lambda r: float(skipped), 0.0,
            rows=total, unit="", better="lower",
        ),
        job_figure(
            f"{name}: steps trained again", [killed], lambda r: repeated / steps, _MAX_EXTRA,
            rows=total, unit="share", better="lower",
            notes={"steps": steps, "repeated": repeated, "extra_cpu_with_restart": round(extra_cpu, 4)},
        ),
    ]  # fmt: skip


def _difference(a: Run, b: Run) -> float:
    """The largest difference between two models' weights."""
    first, second = (load_file(next(Path(r.result["bundle"]).glob("*.safetensors"))) for r in (a, b))
    require(first.keys() == second.keys(), "the runs ended with different models")
    return max(float(np.abs(first[k].astype(np.float64) - second[k]).max(initial=0.0)) for k in first)
