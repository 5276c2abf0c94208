"""What comes before and after the trials: the cache that they share, and the bundle of the best."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from typing import Any

import ray

from xmodal_dist import storage
from xmodal_dist.bundle import load_bundle, save_bundle
from xmodal_dist.train.launch import describe_data, launch
from xmodal_dist.train.loop import Worker
from xmodal_dist.train.place import Place
from xmodal_dist.tune.ledger import Planned, TrialRecord, run_of
from xmodal_dist.tune.run import RunSettings
from xmodal_dist.tune.trial import TrialBase, trial_job

__all__ = ["drop_cache", "make_bundle", "with_cache"]

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


def make_bundle(base: TrialBase, final: str, best: TrialRecord) -> str:
    """The best trial's model as ``OUTPUT/bundle``: from its checkpoint, or trained once more from the start."""
    target = storage.join(base.output, "bundle")
    planned = Planned(best.trial, best.values, best.seed)
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
        task = ray.remote(num_cpus=base.needs.cpus, num_gpus=base.needs.gpus, max_retries=3)(_promote)
        ray.get(task.remote(base, planned))
    save_bundle(target, load_bundle(bundle))
    return target


def _promote(base: TrialBase, planned: Planned) -> dict[str, Any]:
    """Make the bundle of a trial's best checkpoint, calibrated on the validation split, in this process."""
    job = describe_data(trial_job(base, planned))
    return Worker(job, Place.alone(job.use_gpu)).finish()
