"""Our side of the training benchmarks: the real job, Ray Train and all, with a step or an input exchanged on request.

Request keys: ``dataset``; ``folder``, where runs are written; ``num_workers``; ``settings``, the configuration's
sections ``train`` and ``pipeline``; ``step``, ``real`` or the seconds that a simulated accelerator takes for a step
(all ranks wait for each other after it, as they do for gradients); ``input``, ``real`` or ``replay``, which hands the
first batch out again and again; ``kill_after_steps``, if the last rank is to die by SIGKILL, once, after so many;
``nodes``, Ray nodes of a CPU each, or 0 for this machine as it is.

Result: ``goodput``; ``bundle``, the folder of the finished model; and of each rank's last attempt ``up_s``, ``steps``
(begin and end of every optimizer step, seconds of the wall clock), ``compute_cpu_s`` (of its thread in them) and
``taken``, the steps that it took from the stream of data, those of validation included.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.ours.nodes import several_nodes
from benchmarks.protocol import finish, measured, request

__all__ = ["main", "train_and_tell"]

_REQUEST = "XMODAL_BENCH_REQUEST"


def main() -> None:
    """Train once as asked; the measured region is the whole job."""
    asked = request()
    asked["run"] = tempfile.mkdtemp(dir=asked["folder"]) + "/run"
    # Ray's workers inherit the environment of the process that starts Ray.
    os.environ[_REQUEST] = json.dumps(asked)
    from xmodal_dist import runtime
    from xmodal_dist.config import Config

    launching: Any = importlib.import_module("xmodal_dist.train.launch")

    launching.train_worker = train_and_tell
    config = Config.model_validate(asked["settings"])
    with several_nodes(asked["nodes"]), runtime.connect(), measured("job"):
        launching.launch(
            asked["dataset"],
            asked["run"],
            fields={},
            model=config.model,
            train=config.train.model_copy(update={"num_workers": asked["num_workers"]}),
            pipeline=config.pipeline,
            resume=False,
        )
    told = [json.loads(p.read_text()) for p in sorted(Path(asked["run"]).glob("told-*.json"))]
    goodput = json.loads((Path(asked["run"]) / "goodput.json").read_text())
    finish({"ranks": told, "goodput": goodput, "bundle": str(Path(asked["run"]) / "bundle")})


def train_and_tell(config: dict[str, Any]) -> dict[str, Any]:
    """The worker of a run, with what the request exchanges."""
    up_s = time.time()
    asked = json.loads(os.environ[_REQUEST])
    from ray import train

    loop: Any = importlib.import_module("xmodal_dist.train.loop")
    rank = train.get_context().get_world_rank()
    last = rank == train.get_context().get_world_size() - 1
    told: dict[str, Any] = {"up_s": up_s, "steps": [], "compute_cpu_s": 0.0, "taken": 0}
    real_step = loop.optimizer_step if asked["step"] == "real" else _sleeping(asked["step"])

    def timed_step(*arguments: Any) -> Any:
        began_s, began_cpu_s = time.time(), time.thread_time()
        sums = real_step(*arguments)
        told["compute_cpu_s"] += time.thread_time() - began_cpu_s
        told["steps"].append((began_s, time.time()))
        if last and len(told["steps"]) == asked["kill_after_steps"]:
            _die_once(Path(asked["run"]) / "killed")
        return sums

    loop.optimizer_step = timed_step
    loop.stream_steps = _counted(loop.stream_steps, told)
    if asked["input"] == "replay":
        loop.stream_steps = _replay(loop.stream_steps)
        loop.Worker._account = lambda self: None  # records repeat, so they cannot add up
    summary: dict[str, Any] = loop.train_worker(config)
    Path(asked["run"], f"told-{rank:03d}.json").write_text(json.dumps(told))
    return summary


def _die_once(marker: Path) -> None:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _counted(stream: Any, told: dict[str, Any]) -> Any:
    def counted(*arguments: Any) -> Iterator[Any]:
        for step in stream(*arguments):
            told["taken"] += 1
            yield step

    return counted


def _replay(stream: Any) -> Any:
    """The stream's first step for ever."""

    def replayed(*arguments: Any) -> Iterator[Any]:
        steps = stream(*arguments)
        first = next(steps)
        steps.close()
        first = first._replace(rejected=[], cpu_s=0.0)
        while True:
            yield first

    return replayed


def _sleeping(sleep_s: float) -> Any:
    """An optimizer step that keeps the processor idle, as one on an accelerator does."""
    import torch
    import torch.distributed as dist

    from xmodal_dist.train.step import OneStep

    def step(
        model: Any, optimizer: Any, batch: Any, job: Any, rate: float, num_workers: int, watch: Any
    ) -> OneStep:
        with watch.stage("forward"):
            time.sleep(sleep_s)
        real = batch.ids >= 0
        if num_workers > 1:
            dist.all_reduce(torch.zeros(()))
        return OneStep(torch.zeros(()), batch.weights.sum(), real.sum(), torch.zeros((), dtype=torch.int64))

    return step


if __name__ == "__main__":
    main()
