"""What comes before and after the trials: the cache that they share, and the bundles of the best."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from typing import Any

import ray

from xmodal_dist import storage
from xmodal_dist.bundle import load_bundle, save_bundle
from xmodal_dist.errors import DataError
from xmodal_dist.train.calibration import Observed
from xmodal_dist.train.launch import describe_data, launch
from xmodal_dist.train.loop import Worker
from xmodal_dist.train.place import Place
from xmodal_dist.tune.ledger import Planned, TrialRecord, run_of
from xmodal_dist.tune.run import RunSettings
from xmodal_dist.tune.trial import TrialBase, trial_job

__all__ = ["drop_cache", "make_bundle", "promote", "with_cache"]

_CACHE_PREFIX = "xmodal-search-"


def with_cache(run: RunSettings, output: str) -> RunSettings:
    """The settings with one cache of decoded records a node for all trials, and readers in the trials' own threads."""
    pipeline = run.pipeline
    if pipeline.placement == "auto":
        pipeline = pipeline.model_copy(update={"placement": "local"})
    if pipeline.cache_dir is None:
        name = _CACHE_PREFIX + hashlib.sha256(output.encode()).hexdigest()[:12]
        pipeline = pipeline.model_copy(update={"cache_dir": os.path.join(tempfile.gettempdir(), name)})
    return run._replace(pipeline=pipeline)


def drop_cache(base: TrialBase) -> None:
    """Remove the cache from every node, if it is the search's own."""
    path = base.run.pipeline.cache_dir
    if path is None or not os.path.basename(path).startswith(_CACHE_PREFIX):
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remove: Any = ray.remote(num_cpus=0)(shutil.rmtree)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    strategies = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    ray.get([remove.options(scheduling_strategy=s).remote(path, ignore_errors=True) for s in strategies])


def promote(base: TrialBase, records: Iterable[TrialRecord]) -> dict[int, Observed]:
    """Make bundles of trials' best checkpoints in their run directories, calibrated on the validation split.

    Returns:
        By trial, what its bundle says of the validation records, with all fields that each has.
    """
    needs = base.needs
    task = ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, max_retries=3)(_promote)
    planned = {record.trial: Planned(record.trial, record.values, record.seed) for record in records}
    said = ray.get([task.remote(base, one) for one in planned.values()])
    return dict(zip(planned, said, strict=True))


def make_bundle(base: TrialBase, final: str, best: TrialRecord) -> str:
    """The best trial's model as ``OUTPUT/bundle``: what :func:`promote` made, or trained once more from the start."""
    target = storage.join(base.output, "bundle")
    if final == "retrain":
        run, place = base.run.with_values(best.values), storage.join(base.output, "retrained")
        bundle = launch(
            base.dataset,
            place,
            fields=run.fields,
            model=run.model,
            train=run.train.model_copy(update={"seed": best.seed, "num_workers": base.needs.num_workers}),
            pipeline=run.pipeline,
            resume=storage.exists(storage.join(place, "run.json")),
        ).bundle
    else:
        bundle = storage.join(run_of(base.output, best.trial), "bundle")
    save_bundle(target, load_bundle(bundle))
    return target


def _promote(base: TrialBase, planned: Planned) -> Observed:
    """Make the bundle of a trial in this process."""
    job = describe_data(trial_job(base, planned))
    worker = Worker(job, Place.alone(job.use_gpu))
    worker.finish()
    if worker.observed is None:
        raise DataError(f"{base.dataset}: no record of the split 'val' could be decoded")
    return worker.observed._replace(logits=worker.observed.logits[:, -1:])
