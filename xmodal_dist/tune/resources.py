"""What a trial takes of the cluster, and how many trials it can hold at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from xmodal_dist.errors import UsageError
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.tune.settings import SearchSettings

__all__ = ["TOKEN", "Needs", "cluster_nodes", "plan_needs"]

TOKEN = "node:__internal_head__"
"""A resource that every cluster has one of: trials that hold a share of it are limited in number."""
_MAX_TOKENS = 20
_READER_CPUS = 1.0


class Needs(NamedTuple):
    """What each trial takes.

    Attributes:
        num_workers: workers of a trial.
        cpus: CPUs of each.
        gpus: GPUs of each.
        reader_cpus: CPUs of the Ray Data tasks of each worker; 0 where workers read by themselves.
        concurrent: trials at once.
        trials_on_node: of these, on one machine, at the most.
        limited: whether something other than CPUs and GPUs limits them.
    """

    num_workers: int
    cpus: float
    gpus: float
    reader_cpus: float
    concurrent: int
    trials_on_node: int
    limited: bool

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What Tune reserves for a trial; the workers of a nested trainer reserve their own."""
        own = {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}
        # A little is left for the actors by which nested trainers watch over their placement groups.
        token = {TOKEN: math.floor(1e4 / (self.concurrent + 0.5)) / 1e4}
        if self.num_workers > 1:
            return [token]
        readers = [{"CPU": self.reader_cpus}] if self.reader_cpus else []
        return [own, *readers, *([token] if self.limited else [])]


def plan_needs(
    settings: SearchSettings,
    pipeline: PipelineSettings,
    num_workers: int,
    nodes: Sequence[Mapping[str, float]],
) -> Needs:
    """What trials take, and how many fit on the nodes at once with all that reads for them.

    Args:
        settings: of the search.
        pipeline: of the reading; ``placement: ray`` needs a CPU a worker besides the worker's own.
        num_workers: workers of a trial.
        nodes: resources of each node of the cluster.

    Raises:
        UsageError: not even one trial fits; names the resource.
    """
    all_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    gpus = settings.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if all_gpus >= num_workers else 0.0
    if 0 < gpus < 1 < num_workers:
        raise UsageError(
            f"search.gpus_per_worker={gpus:g}: {num_workers} workers of a trial cannot share a GPU; set it to 1, or "
            f"--num-workers 1"
        )
    cpus, reader_cpus = settings.cpus_per_worker, _READER_CPUS if pipeline.placement == "ray" else 0.0
    limits = {
        "CPU": (num_workers * (cpus + reader_cpus), cpus, "search.cpus_per_worker"),
        "GPU": (num_workers * gpus, gpus, "search.gpus_per_worker"),
    }
    concurrent = _MAX_TOKENS if num_workers > 1 else 10**9
    for resource, (total, part, setting) in limits.items():
        if not total:
            continue
        there = sum(node.get(resource, 0.0) for node in nodes)
        places = sum(math.floor(node.get(resource, 0.0) / part + 1e-9) for node in nodes)
        if total > there + 1e-9 or places < num_workers:
            readers = f" and {reader_cpus:g} for its readers" if resource == "CPU" and reader_cpus else ""
            raise UsageError(
                f"a trial cannot be placed: it needs {num_workers} x {part:g} {resource}{readers}, but the cluster has "
                f"{there:g} {resource} ({places} x {part:g}); lower --num-workers or {setting}, or add nodes"
            )
        concurrent = min(concurrent, int(there / total + 1e-9), places // num_workers)
    limited = settings.max_concurrent is not None and settings.max_concurrent < concurrent
    concurrent = min(concurrent, settings.max_concurrent or concurrent)
    on_node = max(math.floor(node.get("CPU", 0.0) / cpus) for node in nodes)
    return Needs(num_workers, cpus, gpus, reader_cpus, concurrent, max(1, min(concurrent, on_node)), limited)


def cluster_nodes() -> list[dict[str, float]]:
    """Resources of each node of the cluster that this process is connected to."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
