"""Who scores and who decodes: a run's workers, how many units each has under way, and its decoders.

A unit that is read, decoded, predicted and committed leaves the model idle for much of that time. So a worker with an
accelerator has many units under way, each in a lane of its own, and they take turns at the model.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from xmodal_dist import runtime, storage
from xmodal_dist.score.settings import ScoreSettings

__all__ = ["Cluster", "Pool", "find_pool", "plan_pool"]

_MORE_LANES = 2
"""Units beyond those that are decoded: one is committed while another waits for the model."""
_MIN_DECODER_CPUS = 0.01


class Cluster(NamedTuple):
    """What there is to score with: logical CPUs and GPUs of all nodes."""

    cpus: float
    gpus: int


class Pool(NamedTuple):
    """What a run takes of a cluster.

    Attributes:
        workers: actors with the model.
        lanes: units that each has under way.
        worker_cpus: logical CPUs of each.
        worker_gpus: GPUs of each; 0 computes on CPUs.
        placement: whether units are decoded in threads of the worker or in Ray tasks.
        decoders: such threads or tasks of each worker.
        decoder_cpus: logical CPUs of a task.
    """

    workers: int
    lanes: int = 1
    worker_cpus: float = 1.0
    worker_gpus: float = 0.0
    placement: Literal["local", "ray"] = "local"
    decoders: int = 1
    decoder_cpus: float = 1.0


def find_pool(settings: ScoreSettings, output: str, num_workers: int | None, num_units: int) -> Pool:
    """The pool for some units on the cluster that this process is connected to; see :func:`plan_pool`."""
    cluster = Cluster(runtime.cluster_resource("CPU", 1.0), int(runtime.cluster_resource("GPU")))
    return plan_pool(settings, cluster, num_workers, num_units, is_remote=not storage.is_local(output))


def plan_pool(
    settings: ScoreSettings, cluster: Cluster, num_workers: int | None, num_units: int, *, is_remote: bool
) -> Pool:
    """Share a cluster out.

    Args:
        settings: ``placement`` and ``threads``.
        cluster: what there is.
        num_workers: actors; None takes one per GPU, else one per CPU; no more than units.
        num_units: units to score, at least one.
        is_remote: whether a commit waits for the network; then a worker has another unit under way meanwhile.
    """
    workers = min(num_workers or cluster.gpus or max(1, int(cluster.cpus)), num_units)
    worker_cpus, left = runtime.plan_placement(cluster.cpus, workers)
    placement = settings.placement
    if placement == "auto":
        placement = "ray" if cluster.gpus else "local"
    decoders = settings.threads or (max(1, int(left)) if cluster.gpus or placement == "ray" else 1)
    decoded_apart = decoders if placement == "ray" else 1
    lanes = decoded_apart + (_MORE_LANES if cluster.gpus or placement == "ray" else int(is_remote))
    return Pool(
        workers=workers,
        lanes=min(lanes, math.ceil(num_units / workers)),
        worker_cpus=worker_cpus,
        worker_gpus=min(1.0, math.floor(cluster.gpus / workers * 1e4) / 1e4),
        placement=placement,
        decoders=decoders,
        decoder_cpus=min(1.0, max(_MIN_DECODER_CPUS, math.floor(left / decoders * 100) / 100)),
    )
