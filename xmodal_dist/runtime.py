"""Ray for the jobs: join the cluster that is there, or start one on this machine; and who gets which CPUs."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from xmodal_dist.errors import UsageError

__all__ = [
    "Placement",
    "cluster_resource",
    "connect",
    "cores_of",
    "free_memory_bytes",
    "is_connected",
    "nodes_alive",
    "plan_placement",
    "usable_cores",
]

_QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A dead node's workers are missed in seconds, the node itself after 15: what was planned with it, is planned anew.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of every process we start; what the user has set stays."""


class Placement(NamedTuple):
    """CPUs of a training run: each worker's own, and what is left for the readers of each worker."""

    worker_cpus: float
    reader_cpus: float


@contextlib.contextmanager
def connect(
    num_cpus: int | None = None, dashboard: bool = False, address: str | None = None
) -> Iterator[None]:
    """A Ray session for the length of the block.

    Joins the session of this process if there is one, else the cluster at ``address`` or named by ``RAY_ADDRESS``, else
    starts one on this machine and stops it at the end.

    Args:
        num_cpus: logical CPUs of a cluster started here; None counts the machine's.
        dashboard: whether a cluster started here has the State and Jobs API.
        address: of a cluster that is there; with one, none is ever started.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        address = address or os.environ.get("RAY_ADDRESS")
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=dashboard,
                object_store_memory=_object_store_bytes(),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    try:
        yield
    finally:
        ray.shutdown()


def _object_store_bytes() -> int:
    """A quarter of the free memory, between 256 MiB and 4 GiB: chunks cross it, nothing stays in it."""
    return min(max(free_memory_bytes() // 4, 256 << 20), 4 << 30)


def plan_placement(cluster_cpus: float, num_workers: int) -> Placement:
    """Share a cluster's CPUs between training workers and their readers so that neither can starve the other.

    A training worker takes a whole CPU where at least as many again are left for reading; on smaller clusters workers
    together take half of the CPUs (two workers on two cores: half a CPU each, and half a CPU for each one's readers).
    Without this, two one-CPU workers on two CPUs wait for ever for the first batch.

    Raises:
        UsageError: more workers than the cluster can hold.
    """
    if num_workers > cluster_cpus * 50:
        raise UsageError(
            f"{num_workers} workers cannot share {cluster_cpus:g} CPUs; lower --num-workers or use a larger cluster"
        )
    worker = 1.0 if cluster_cpus >= 2 * num_workers else math.floor(cluster_cpus * 50 / num_workers) / 100
    left = math.floor((cluster_cpus - worker * num_workers) * 100 / num_workers) / 100
    return Placement(worker, left)


def is_connected() -> bool:
    """Whether this process is in a Ray session; does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def cluster_resource(name: str, default: float = 0.0) -> float:
    """How much of a resource, for example ``CPU``, the cluster has that this process is connected to."""
    import ray

    return float(ray.cluster_resources().get(name, default))  # type: ignore[no-untyped-call]


def free_memory_bytes() -> int:
    """Memory of this machine that programs can take without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def usable_cores() -> int:
    """Cores of this machine that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of(machines: Mapping[str, int], remote_cpus: float | None) -> float:
    """CPU cores that a job's workers and readers can use together.

    Args:
        machines: usable cores of each machine that workers run on, by host name.
        remote_cpus: Ray's logical CPUs that workers and readers hold together, where Ray tasks read; None where readers
            are threads of the workers. Of machines that hold readers alone nothing else is known.
    """
    own = float(sum(machines.values()))
    if remote_cpus is None:
        return own
    return min(own, remote_cpus) if nodes_alive() <= len(machines) else remote_cpus


def nodes_alive() -> int:
    """Nodes of the cluster that this process is connected to."""
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]
