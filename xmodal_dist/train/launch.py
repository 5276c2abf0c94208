"""Start a run on the workers of a Ray cluster, watch it, and return what it ended with."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from xmodal_dist import runtime, storage
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import DataError, RunAgainError, SpecDiffersError, UsageError, XmodalError
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.train.job import TrainJob
from xmodal_dist.train.log import read_metrics
from xmodal_dist.train.loop import train_worker
from xmodal_dist.train.progress import show_progress
from xmodal_dist.train.settings import TrainSettings

__all__ = ["TrainResult", "launch"]

_RUN_NAME = "run.json"


class TrainResult(NamedTuple):
    """Where a run's results are, and its best validation metrics."""

    run: str
    bundle: str
    metrics: dict[str, Any]


def launch(
    dataset: str,
    run: str,
    *,
    fields: Mapping[str, Mapping[str, Any]],
    model: ModelSettings,
    train: TrainSettings,
    pipeline: PipelineSettings,
    resume: bool,
) -> TrainResult:
    """Train on a packed dataset inside a Ray session that is already there.

    Args:
        dataset: path or URI of the dataset.
        run: path or URI of the run directory; on several nodes, one that all of them reach.
        fields: settings by field name.
        model: settings of the model.
        train: settings of the training.
        pipeline: settings of the reading.
        resume: go on with the run that is in ``run``.

    Raises:
        UsageError: ``run`` holds something and ``resume`` is false, or sizes do not fit.
        SpecDiffersError: the run to resume had other settings or data.
        RunAgainError: workers were lost more often than ``train.max_failures``.
    """
    started_s = time.time()
    manifest = load_manifest(dataset)
    if not manifest.split_shards("train"):
        raise DataError(f"{dataset} has no training records")
    specs = fit_fields(dataset, manifest, fields, train.fit_rows)
    use_gpu, num_workers = _workers(train.num_workers)
    train.check(num_workers, pipeline.window_rows)
    placement = runtime.plan_placement(_cluster("CPU"), num_workers)
    job = TrainJob(
        run, dataset, manifest, specs, model, train, pipeline,
        placement.worker_cpus, placement.reader_cpus, use_gpu, started_s,
    )  # fmt: skip
    _claim(job, resume)
    with _watched(run):
        metrics = _fit(job, num_workers)
    return TrainResult(run, job.bundle, metrics)


def _fit(job: TrainJob, num_workers: int) -> dict[str, Any]:
    """Run the workers to the end; lost ones are replaced and go on from the newest checkpoint."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    resources = {"CPU": job.worker_cpus, **({"GPU": 1} if job.use_gpu else {})}
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=job.train.collective_timeout_s),
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=job.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            # A name of its own for each launch: which checkpoint to go on from is ours to decide, not Ray's.
            name=f"attempt-{uuid.uuid4().hex[:12]}",
            storage_path=storage.join(job.run, "ray"),
            failure_config=FailureConfig(
                max_failures=job.train.max_failures,
                controller_failure_limit=3,  # type: ignore[call-arg]
            ),
        ),
    )
    try:
        summary = dict(trainer.fit().return_value or {})  # type: ignore[attr-defined]
    except TrainingFailedError as error:
        raise _cause(error) from error
    if "error" in summary:
        raise summary["error"]
    return summary


def _cause(error: Exception) -> XmodalError:
    """The workers' own error where they had one; else that the run can be continued."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, XmodalError):
                return inner
            inner = inner.__cause__
    first = next(iter(failures.values()), error)
    return RunAgainError(f"training stopped: {first}. The same command with --resume continues it")


def _workers(asked: int | None) -> tuple[bool, int]:
    """Whether workers get GPUs, and how many workers."""
    gpus = int(_cluster("GPU"))
    if asked is None:
        return (True, gpus) if gpus else (False, 2)
    return gpus >= asked, asked


def _cluster(resource: str) -> float:
    import ray

    return float(ray.cluster_resources().get(resource, 0.0))  # type: ignore[no-untyped-call]


def _claim(job: TrainJob, resume: bool) -> None:
    """Make the run directory ours: new, or the same run continued."""
    path = storage.join(job.run, _RUN_NAME)
    identity = json.loads(json.dumps(job.identity()))
    if storage.exists(path):
        if not resume:
            raise UsageError(
                f"{job.run!r} already holds a run; continue it with --resume, or choose another --output"
            )
        known = json.loads(storage.read_text(path))
        different = list(_differences(known, identity))
        if different:
            raise SpecDiffersError(
                f"{job.run!r} was started with other settings or data: {'; '.join(different)}"
            )
        return
    if storage.exists(job.run) and storage.list_files(job.run):
        raise UsageError(
            f"{job.run!r} already holds other files; choose an empty or new directory for --output"
        )
    storage.write_bytes(path, json.dumps(identity, indent=1, sort_keys=True).encode())


def _differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield f"{at} was {old!r}, now {new!r}"


@contextmanager
def _watched(run: str) -> Iterator[None]:
    """Show the run's progress on stderr while the block runs."""
    stop = threading.Event()
    thread = threading.Thread(target=show_progress, args=(lambda: read_metrics(run), stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
