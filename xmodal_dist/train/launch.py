"""Start a run on the workers of a Ray cluster, watch it, and return what it ended with."""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import yaml

from xmodal_dist import environment, runtime, storage
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import DataError, RunAgainError, SpecDiffersError, UsageError, XmodalError
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.fit import decode_sample, fit_fields
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.profile import fit_profile
from xmodal_dist.settings import differences
from xmodal_dist.train.job import TrainJob
from xmodal_dist.train.log import read_metrics
from xmodal_dist.train.loop import train_worker
from xmodal_dist.train.order import measure_order, order_warning
from xmodal_dist.train.progress import show_progress
from xmodal_dist.train.settings import TrainSettings

__all__ = ["TrainResult", "describe_data", "fit", "launch"]

_RUN_NAME = "run.json"
_CONFIG_NAME = "config.yaml"
_ENVIRONMENT_NAME = "environment.json"
_PROFILE_ROWS = 1000
_WAITS_FOR_ROOM = 23
"""Of :data:`runtime._QUIET`'s 20 seconds each: a run whose workers find no room ends after 8 minutes."""


class TrainResult(NamedTuple):
    """Where a run's results are, and its best validation metrics."""

    run: str
    bundle: str
    metrics: dict[str, Any]


def launch(
    dataset: str,
    run: str,
    *,
    fields: Mapping[str, Mapping[str, Any] | None],
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
    train = train.for_task(manifest.task)
    specs = fit_fields(dataset, manifest, fields, train.fit_rows)
    use_gpu, num_workers = _workers(train)
    train.check(num_workers, pipeline.window_rows)
    if train.min_workers is not None and not use_gpu:
        pipeline = _reads_by_itself(pipeline)
    placement = _placement(train, use_gpu, num_workers)
    job = TrainJob(
        run, dataset, manifest, specs, model, train, pipeline,
        placement.worker_cpus, placement.reader_cpus, use_gpu, started_s,
    )  # fmt: skip
    _claim(job, resume)
    _record(job)
    job = describe_data(job)
    if job.order and (warning := order_warning(job.order, pipeline.window_rows)):
        print(warning, file=sys.stderr)
    with _watched(run):
        metrics = fit(job, num_workers)
    return TrainResult(run, job.bundle, metrics)


def describe_data(job: TrainJob) -> TrainJob:
    """The job with what its reports and its bundle say of the data: how well mixed it is, and what it looks like."""
    rows = min(job.train.fit_rows, _PROFILE_ROWS)
    sample = decode_sample(job.dataset, job.manifest, job.specs, rows)
    profile = fit_profile(job.specs, sample, job.manifest.splits["train"].classes)
    return replace(job, order=measure_order(job.dataset, job.schedule), profile=profile)


def fit(job: TrainJob, num_workers: int, gate: Callable[[int], bool] | None = None) -> dict[str, Any]:
    """Run the workers to the end; lost ones are replaced and go on from the newest checkpoint.

    Args:
        job: the run.
        num_workers: at most, if their number may change.
        gate: asked after each epoch whether to go on; see :meth:`xmodal_dist.train.loop.Worker.run`.

    Returns:
        A summary; {} where the gate ended the run.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    least = job.train.min_workers
    workers: Any = num_workers if least is None else (least, num_workers)
    resources = {"CPU": job.worker_cpus, **({"GPU": 1} if job.use_gpu else {})}
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]
        train_loop_config={"job": job, "gate": gate},
        torch_config=TorchConfig(timeout_s=job.train.collective_timeout_s),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=job.use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=job.train.resize_interval_s,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(
            # A name of its own for each launch: which checkpoint to go on from is ours to decide, not Ray's.
            name=f"attempt-{uuid.uuid4().hex[:12]}",
            storage_path=storage.join(job.run, "ray"),
            failure_config=FailureConfig(
                max_failures=job.train.max_failures,
                controller_failure_limit=_WAITS_FOR_ROOM,  # type: ignore[call-arg]
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


def _workers(train: TrainSettings) -> tuple[bool, int]:
    """Whether workers get GPUs, and how many workers, at most if their number may change."""
    gpus, asked = int(runtime.cluster_resource("GPU")), train.num_workers
    if asked is None:
        return (True, gpus) if gpus else (False, 2)
    return gpus >= (train.min_workers or asked), asked


def _placement(train: TrainSettings, use_gpu: bool, num_workers: int) -> runtime.Placement:
    """CPUs of each worker and its readers."""
    cpus = runtime.cluster_resource("CPU")
    if train.min_workers is None:
        return runtime.plan_placement(cpus, num_workers)
    if use_gpu:
        return runtime.plan_placement(cpus, min(int(runtime.cluster_resource("GPU")), num_workers))
    if cpus < train.min_workers:
        raise UsageError(
            f"train.min_workers={train.min_workers}, but the cluster has only {cpus:g} CPUs now; "
            f"lower it, or start more nodes first"
        )
    # Whole CPUs: Ray counts the workers that a node can hold by dividing, and parts of one would crowd the first node.
    return runtime.Placement(1.0, 0.0)


def _reads_by_itself(pipeline: PipelineSettings) -> PipelineSettings:
    """Elastic workers on CPUs may take up every CPU of the cluster, so that no Ray Data task could ever start."""
    if pipeline.placement == "ray":
        raise UsageError(
            "train.min_workers on CPUs needs pipeline.placement=local (or auto): workers may take all CPUs, and tasks "
            "that read would wait for ever"
        )
    return pipeline.model_copy(update={"placement": "local"})


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
        different = list(differences(known, identity))
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


def _record(job: TrainJob) -> None:
    """Write down the settings, defaults included, and where this command runs, after those that it continues."""
    settings = yaml.safe_dump(job.config(), sort_keys=False, allow_unicode=True)
    storage.write_bytes(storage.join(job.run, _CONFIG_NAME), settings.encode())
    path = storage.join(job.run, _ENVIRONMENT_NAME)
    before = json.loads(storage.read_text(path))["commands"] if storage.exists(path) else []
    data = {"dataset": job.dataset, "dataset_seed": job.manifest.seed}
    content = {"commands": [*before, {**environment.capture(), **data}]}
    storage.write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


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
