"""A trial as an actor of Ray Tune: one epoch a step, resumable from the run directory, reused for the next trial.

With one worker the training loop runs in the actor itself. With several a nested trainer runs it in processes of its
own, which wait after each epoch for leave to go on: so a trial is never killed to stop it, and leaves nothing behind.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from ray.tune import Trainable
from torch import nn

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import Manifest
from xmodal_dist.errors import CheckpointError, DivergedError, XmodalError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.train.checkpoint import (
    Progress,
    clear_checkpoints,
    copy_checkpoint,
    latest_checkpoint,
    load_progress,
)
from xmodal_dist.train.job import TrainJob
from xmodal_dist.train.launch import fit
from xmodal_dist.train.log import METRICS_NAME, read_epochs
from xmodal_dist.train.loop import Worker
from xmodal_dist.train.place import Place
from xmodal_dist.tune.ledger import Planned, run_of, write_planned
from xmodal_dist.tune.resources import Needs
from xmodal_dist.tune.run import RunSettings
from xmodal_dist.tune.settings import LOWER_IS_BETTER, Metric

__all__ = ["SCORE", "Trial", "TrialBase", "name_of", "number_of", "objectives_of", "score_of", "trial_job"]

SCORE = "score"
"""What schedulers see: the first metric, higher is better."""
_TIE_BREAK = 1e-6
_POLL_S = 0.1
_STOP = -1


@dataclass(frozen=True)
class TrialBase:
    """What all trials of a search share.

    Attributes:
        output: directory of the search.
        dataset: path or URI of the dataset.
        manifest: its manifest.
        run: settings that trials change.
        specs: its fields, fitted with these settings.
        metrics: what is optimised.
        needs: what a trial takes.
    """

    output: str
    dataset: str
    manifest: Manifest
    run: RunSettings
    specs: tuple[FieldSpec, ...]
    metrics: tuple[Metric, ...]
    needs: Needs


def trial_job(base: TrialBase, planned: Planned, known: Sequence[FieldSpec] = ()) -> TrainJob:
    """The training run of a trial; ``known`` fields are not fitted again."""
    run = base.run.with_values(planned.values)
    train = run.train.model_copy(
        update={"seed": planned.seed, "num_workers": base.needs.num_workers, "min_workers": None}
    )
    train.check(base.needs.num_workers, run.pipeline.window_rows)
    specs = fit_fields(base.dataset, base.manifest, run.fields, train.fit_rows, (*base.specs, *known))
    needs = base.needs
    return TrainJob(
        run_of(base.output, planned.number), base.dataset, base.manifest, specs, run.model, train, run.pipeline,
        needs.cpus, needs.reader_cpus, needs.gpus > 0, time.time(),
    )  # fmt: skip


def objectives_of(metrics: Mapping[str, float], names: Sequence[Metric]) -> tuple[float, ...]:
    """The figures to maximise."""
    return tuple(-metrics[name] if name in LOWER_IS_BETTER else metrics[name] for name in names)


def score_of(metrics: Mapping[str, float], names: Sequence[Metric]) -> float:
    """What schedulers compare: the first figure; on few records many trials are equal, and the loss decides."""
    return objectives_of(metrics, names)[0] - _TIE_BREAK * metrics["loss"]


class _Training(Protocol):
    """A run under way, of a network with ``num_parameters``."""

    num_parameters: int

    def epoch(self) -> Progress:
        """Train one more; blocks."""

    def close(self) -> None:
        """Stop, with the newest checkpoint on disk."""


class _Alone:
    """In this process."""

    def __init__(self, job: TrainJob, base: TrialBase) -> None:
        self._worker = Worker(job, Place.alone(job.use_gpu, base.needs.trials_on_node))
        self.num_parameters = _count(self._worker.model)

    def epoch(self) -> Progress:
        if not self._worker.progress.done:
            self._worker.epoch()
        return self._worker.progress

    def close(self) -> None:
        self._worker.close()


@dataclass(frozen=True)
class _Gate:
    """How a nested trainer asks whether to go on, through two files in the run directory.

    Attributes:
        run: the directory.
    """

    run: str

    def __call__(self, epochs: int) -> bool:
        """In the worker: tell that so many epochs are done and checkpointed, and wait for an answer."""
        self._write("reached.json", epochs)
        while (allowed := self._read("allowed.json")) != _STOP:
            if allowed > epochs:
                return True
            time.sleep(_POLL_S)
        return False

    def start(self, epochs: int) -> None:
        """In the trial: before the trainer begins after so many epochs."""
        self._write("reached.json", epochs)
        self.allow(epochs)

    def allow(self, epochs: int) -> None:
        """In the trial: train up to so many epochs."""
        self._write("allowed.json", epochs)

    def reached(self) -> int:
        """In the trial: epochs done."""
        return self._read("reached.json")

    def _write(self, name: str, epochs: int) -> None:
        storage.write_bytes(storage.join(self.run, name), json.dumps(epochs).encode())

    def _read(self, name: str) -> int:
        path = storage.join(self.run, name)
        return int(json.loads(storage.read_text(path))) if storage.exists(path) else 0


class _Group:
    """In a nested trainer of several workers, which replaces those that die."""

    def __init__(self, job: TrainJob, base: TrialBase) -> None:
        self._job, self._gate = job, _Gate(job.run)
        with torch.device("meta"):
            self.num_parameters = _count(job.new_model())
        newest = latest_checkpoint(job.checkpoints, job.digest)
        self._progress = load_progress(job.checkpoints, newest) if newest else Progress()
        self._gate.start(self._progress.epoch)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, args=(base.needs.num_workers,), daemon=True)
        if not self._progress.done:
            self._thread.start()

    def epoch(self) -> Progress:
        wanted = self._progress.epoch + 1
        if self._progress.done:
            return self._progress
        self._gate.allow(wanted)
        while self._gate.reached() < wanted:
            self._thread.join(_POLL_S)
            if not self._thread.is_alive() and self._gate.reached() < wanted:
                raise self._error or XmodalError(
                    "the nested trainer ended early: please report this as a bug"
                )
        newest = latest_checkpoint(self._job.checkpoints, self._job.digest)
        if newest is None:
            raise CheckpointError(f"{self._job.checkpoints} holds no checkpoint after epoch {wanted - 1}")
        self._progress = load_progress(self._job.checkpoints, newest)
        return self._progress

    def close(self) -> None:
        self._gate.allow(_STOP)
        if self._thread.is_alive():
            self._thread.join()

    def _fit(self, num_workers: int) -> None:
        try:
            fit(self._job, num_workers, self._gate)
        except BaseException as error:
            self._error = error


def name_of(number: int) -> str:
    """What Tune calls a trial; its number is in its name, because configurations travel from trial to trial."""
    return f"trial-{number:05d}"


def number_of(name: str) -> int:
    """Inverse of :func:`name_of`."""
    return int(name.rpartition("-")[2])


class Trial(Trainable):
    """One trial after another; the configuration is ``seed`` and the searched settings by dotted name."""

    def setup(self, config: dict[str, Any], base: TrialBase | None = None) -> None:
        """Called once an actor."""
        if base is None:
            raise TypeError("a trial is made with ray.tune.with_parameters(Trial, base=...)")
        self._base, self._known = base, dict[str, FieldSpec]()
        self._training: _Training | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another trial, or other settings of the same."""
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train an epoch. A trial that cannot go on ends with ``failed``; an error would cost the actor."""
        try:
            if self._training is None:
                self._training = self._open()
            result = self._result(self._training.epoch(), self._training.num_parameters)
        except Exception as error:
            reason = _reason(error)
            if reason is None:
                raise
            self._end()
            return {"done": True, "failed": reason, "message": str(error) or repr(error), **self._costs()}
        if result["done"]:
            self._end()  # now, so that what it held is free before the actor is asked for anything else
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copy the newest and the best checkpoint and the log; they are in the same plain format."""
        root, digest = self._job.checkpoints, self._job.digest
        newest = latest_checkpoint(root, digest)
        if newest is None:
            return
        target = storage.join(checkpoint_dir, "checkpoints")
        for name in {newest, load_progress(root, newest).best_checkpoint}:
            copy_checkpoint(root, name, target, digest)
        log = storage.read_bytes(storage.join(self._job.run, METRICS_NAME))
        storage.write_bytes(storage.join(checkpoint_dir, METRICS_NAME), log)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from a checkpoint of this trial or, with this trial's settings, of another: its past is taken over."""
        self._end()
        source, job = storage.join(checkpoint, "checkpoints"), self._job
        clear_checkpoints(job.checkpoints)
        for path in storage.list_files(source, "MANIFEST.json"):
            copy_checkpoint(source, path.split("/")[-2], job.checkpoints, job.digest)
        log = storage.read_bytes(storage.join(checkpoint, METRICS_NAME))
        storage.write_bytes(storage.join(job.run, METRICS_NAME), log)

    def cleanup(self) -> None:
        """Called before the actor ends."""
        self._end()

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._told_s, self._told_cpu_s = time.monotonic(), time.process_time()
        values = {k: v for k, v in config.items() if "." in k}
        self._planned = Planned(number_of(self.trial_name), values, config["seed"], config["repeat_of"])
        self._lazy_job: TrainJob | None = None

    def _end(self) -> None:
        training, self._training = self._training, None
        if training is not None:
            training.close()

    @property
    def _job(self) -> TrainJob:
        if self._lazy_job is None:
            job = self._lazy_job = trial_job(self._base, self._planned, tuple(self._known.values()))
            self._known |= {json.dumps([s.name, s.fit_identity], sort_keys=True): s for s in job.specs}
        return self._lazy_job

    def _open(self) -> _Training:
        """Begin, or go on from the run directory's newest checkpoint."""
        job = self._job
        write_planned(self._base.output, self._planned)
        try:
            latest_checkpoint(job.checkpoints, job.digest)
        except CheckpointError:
            clear_checkpoints(job.checkpoints)  # killed while it took over another trial's
        return (_Alone if self._base.needs.num_workers == 1 else _Group)(job, self._base)

    def _result(self, progress: Progress, num_parameters: int) -> dict[str, Any]:
        """What Tune, the callbacks and the table are told of an epoch."""
        last = read_epochs(self._job.run)[-1]
        best = {k: v for k, v in progress.best_metrics.items() if isinstance(v, float)}
        now = {name: last[f"val_{name}"] for name in best} | {"parameters": num_parameters}
        score = score_of(now, self._base.metrics)
        if not (math.isfinite(score) and math.isfinite(now["loss"])):
            raise DivergedError(f"the validation loss of epoch {progress.epoch - 1} is {now['loss']}")
        return {
            "epoch": progress.epoch,
            "done": progress.done,
            "finished": progress.done,
            SCORE: score,
            "best": {**best, "parameters": num_parameters},
            "best_epoch": progress.best_epoch,
            **self._costs(),
        }

    def _costs(self) -> dict[str, Any]:
        """Seconds since they were last told."""
        now_s, now_cpu_s = time.monotonic(), time.process_time()
        alone = self._base.needs.num_workers == 1
        told = {"wall_s": now_s - self._told_s, "cpu_s": now_cpu_s - self._told_cpu_s if alone else None}
        self._told_s, self._told_cpu_s = now_s, now_cpu_s
        return told


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _reason(error: Exception) -> str | None:
    """Why a trial failed, where that leaves its process whole; None of what nobody foresaw."""
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error):
        return "out_of_memory"
    return "error" if isinstance(error, XmodalError) else None
