"""What one process on a node sees there: the half of the cluster's checks that runs on every node."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import tempfile
import time
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from xmodal_dist import runtime, storage
from xmodal_dist.errors import XmodalError
from xmodal_dist.version import __version__

__all__ = ["Facts", "Node", "Reached", "versions_here"]

_PACKAGES = ("ray", "torch", "pyarrow")
_DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
_REDUCED = 1 << 20
_ROUNDS = 3


class Facts(NamedTuple):
    """One node.

    Attributes:
        host: its name.
        versions: package -> version, Python and this package included.
        cards: GPUs that NVIDIA's driver shows there; 0 without a driver.
        torch_cuda: CUDA version that its torch was built with, or None.
        shm_bytes, disk_bytes: free in ``/dev/shm`` and in the folder of temporary files; -1 where there is none.
        memory_bytes: free memory.
        asks_for_token: whether its processes want Ray's token of each other.
    """

    host: str
    versions: dict[str, str]
    cards: int
    torch_cuda: str | None
    shm_bytes: int
    disk_bytes: int
    memory_bytes: int
    asks_for_token: bool


class Reached(NamedTuple):
    """A node's try at the storage.

    Attributes:
        read_bytes_per_s: of the driver's probe; 0 where it was not read.
        created: whether it was this node that created a file that all tried to create.
        error: what went wrong, or "".
    """

    read_bytes_per_s: float
    created: bool
    error: str


def versions_here() -> dict[str, str]:
    """Versions that all nodes must share."""
    found = {name: metadata.version(name).split("+")[0] for name in _PACKAGES}
    return {"python": platform.python_version(), **found, "xmodal-dist": __version__}


class Node:
    """A Ray actor on one node; makes no finding of its own."""

    def facts(self) -> Facts:
        """Look around."""
        import torch

        return Facts(
            host=socket.gethostname(),
            versions=versions_here(),
            cards=len(list(_DRIVER_FOLDER.iterdir())) if _DRIVER_FOLDER.is_dir() else 0,
            torch_cuda=torch.version.cuda,
            shm_bytes=_free("/dev/shm"),
            disk_bytes=_free(tempfile.gettempdir()),
            memory_bytes=runtime.free_memory_bytes(),
            asks_for_token=os.environ.get("RAY_AUTH_MODE") == "token",
        )

    def clock(self) -> float:
        """time.time() of the node."""
        return time.time()

    def reach(self, probe: str, sha256: str, contested: str) -> Reached:
        """Read what the driver wrote, and try to create what every node tries to create."""
        began_s = time.perf_counter()
        try:
            content = storage.read_bytes(probe)
            spent_s = time.perf_counter() - began_s
            if hashlib.sha256(content).hexdigest() != sha256:
                return Reached(0.0, False, "read other bytes than were written")
            created = storage.create(contested, socket.gethostname().encode() + os.urandom(8))
        except XmodalError as error:
            return Reached(0.0, False, str(error))
        return Reached(len(content) / max(spent_s, 1e-9), created, "")

    def meeting_point(self) -> tuple[str, int]:
        """An address of this node with a port that is free."""
        import ray

        with socket.socket() as listener:
            listener.bind(("", 0))
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            return str(host), int(listener.getsockname()[1])

    def all_reduce(
        self, meeting: tuple[str, int], rank: int, nodes: int, backend: str, timeout_s: float
    ) -> tuple[bool, float]:
        """Add 4 MiB of numbers over all nodes: whether the sum is right, and bytes a second of one node's share.

        Raises:
            Exception: whatever torch.distributed raises where nodes do not reach each other in time.
        """
        import torch
        import torch.distributed as dist

        limit = timedelta(seconds=timeout_s)
        device = torch.device("cuda" if backend == "nccl" else "cpu")
        dist.init_process_group(
            backend, f"tcp://{meeting[0]}:{meeting[1]}", limit, world_size=nodes, rank=rank
        )
        try:
            right, spent_s = True, float("inf")
            for _ in range(_ROUNDS):
                values = torch.full((_REDUCED,), float(rank + 1), device=device)
                began_s = time.perf_counter()
                dist.all_reduce(values)
                right &= bool((values == nodes * (nodes + 1) / 2).all())
                spent_s = min(spent_s, time.perf_counter() - began_s)
            return right, values.nbytes / spent_s
        finally:
            dist.destroy_process_group()


def _free(path: str) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return -1
