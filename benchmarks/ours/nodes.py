"""Several Ray nodes on one machine, each with one CPU to give away."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

__all__ = ["several_nodes"]

_STORE_BYTES = 100 << 20


@contextlib.contextmanager
def several_nodes(count: int) -> Iterator[None]:
    """While the block runs, Ray joins a cluster of so many nodes; with 0 it is left to start one of its own."""
    if not count:
        yield
        return
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": _STORE_BYTES}
    cluster: Any = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(count - 1):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = cluster.address
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()
