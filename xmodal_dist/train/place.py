"""Where a worker of a run stands: which rank it is, of how many, and on which device."""

from __future__ import annotations

import os
import socket
from typing import Any, NamedTuple

import torch

__all__ = ["Place"]


class Place(NamedTuple):
    """A worker among those of its run.

    Attributes:
        rank: from 0.
        num_workers: of the run.
        workers_on_node: how many of them share this machine.
        device: where it computes.
        placement_group: hex id of the one that holds the workers' resources; "" where none does.
    """

    rank: int
    num_workers: int
    workers_on_node: int
    device: torch.device
    placement_group: str = ""

    def describe(self) -> dict[str, Any]:
        """What an operator needs to find the process, JSON-able."""
        mine = {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid()}
        return {**mine, "placement_group": self.placement_group} if self.placement_group else mine

    @staticmethod
    def in_group() -> Place:
        """That of this process in a worker group of Ray Train."""
        from ray import train
        from ray.train.torch import get_device
        from ray.util import get_current_placement_group

        context, group = train.get_context(), get_current_placement_group()
        return Place(
            context.get_world_rank(),
            context.get_world_size(),
            context.get_local_world_size(),
            get_device(),
            group.id.hex() if group else "",
        )

    @staticmethod
    def alone(use_gpu: bool, workers_on_node: int = 1) -> Place:
        """The only worker of its run, in this process; ``workers_on_node`` counts other runs' workers here as well."""
        return Place(0, 1, workers_on_node, torch.device("cuda" if use_gpu else "cpu"))
