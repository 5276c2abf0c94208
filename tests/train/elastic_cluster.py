"""An elastic run on a Ray cluster of its own that loses a node and then gets one. A program: Ray is one a process.

Usage: python elastic_cluster.py DATASET RUN SETTINGS_JSON
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import ray
from ray.cluster_utils import Cluster

from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.train.launch import launch
from xmodal_dist.train.log import read_metrics
from xmodal_dist.train.settings import TrainSettings

_NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}
_QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}


def _wait_for(run: str, starts: int, step: int) -> None:
    """Until the run's attempt number ``starts`` has come to a step."""
    while True:
        begun = _starts(run)
        if len(begun) >= starts and read_metrics(run)[-1]["step"] >= max(step, begun[-1]["step"] + 1):
            return
        time.sleep(0.05)


def _starts(run: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["event"] == "start"]


def _slow_down(run: str) -> None:
    """Let the only worker run a tenth of the time until it is replaced: it might be done before a node is noticed."""
    attempts = _starts(run)
    pid = attempts[-1]["workers"][0]["pid"]
    with suppress(ProcessLookupError):
        while len(_starts(run)) == len(attempts):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.45)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.05)


def main(dataset: str, run: str, settings: str) -> None:
    """Train on two nodes; take one away in the middle of an epoch, and bring another."""
    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "_system_config": _QUICK_TO_NOTICE})
    second = cluster.add_node(**_NODE)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    job = threading.Thread(
        target=launch,
        args=(dataset, run),
        kwargs={
            "fields": {},
            "model": ModelSettings(width=16),
            "train": TrainSettings.model_validate_json(settings),
            "pipeline": PipelineSettings(window_rows=8),
            "resume": False,
        },
    )
    job.start()
    try:
        # Nodes come and go in the main thread: Ray's set signal handlers.
        _wait_for(run, starts=1, step=25)
        cluster.remove_node(second, allow_graceful=False)
        _wait_for(run, starts=2, step=0)
        slow_down = threading.Thread(target=_slow_down, args=(run,))
        slow_down.start()
        cluster.add_node(**_NODE)
        job.join()
        slow_down.join()
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
