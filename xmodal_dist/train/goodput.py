"""Where the time of a run went: a stopwatch over the stages of the loop, and its summary."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Stopwatch", "summarise"]

_STAGES = (
    "start_up", "wait_for_data", "host_to_device", "forward", "backward", "optimizer", "evaluation", "checkpoint",
)  # fmt: skip

_SENTENCES = {
    "start_up": "start-up took most of the time: the run is short; more epochs or data would not cost in proportion",
    "wait_for_data": "reading was the bottleneck: give readers more CPUs, or pack images smaller",
    "host_to_device": "copies to the device were the bottleneck",
    "forward": "the forward pass was the bottleneck: the network, not the data, sets the pace",
    "backward": "the backward pass was the bottleneck: the network, not the data, sets the pace",
    "optimizer": "the optimizer was the bottleneck: a larger batch would amortise it",
    "evaluation": "validation took most of the time: validate on fewer records",
    "checkpoint": "checkpoints took most of the time: raise train.checkpoint_every_steps",
}


class Stopwatch:
    """Seconds by stage; stages do not nest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.started_s = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's wall time to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def wall_s(self) -> float:
        """Seconds since this stopwatch was made."""
        return time.perf_counter() - self.started_s


def summarise(seconds: Mapping[str, float], wall_s: float, records: int, cpu_s: float) -> dict[str, Any]:
    """The content of goodput.json.

    Args:
        seconds: seconds by stage of one worker.
        wall_s: seconds from the start of the command.
        records: records trained on, over all workers and epochs of this attempt.
        cpu_s: CPU-seconds of all workers and readers.
    """
    stages = {name: round(seconds.get(name, 0.0), 3) for name in _STAGES}
    stages["other"] = round(max(0.0, wall_s - sum(stages.values())), 3)
    binding = max(_STAGES, key=lambda name: stages[name])
    share = stages[binding] / wall_s if wall_s else 0.0
    training_s = max(wall_s - stages["start_up"], 1e-9)
    return {
        "wall_s": round(wall_s, 3),
        "stages_s": stages,
        "records": records,
        "records_per_s": round(records / training_s, 1),
        "cpu_s_per_record": round(cpu_s / records, 6) if records else None,
        "binding_stage": f"{_SENTENCES[binding]} ({binding}: {share:.0%} of {wall_s:.0f} s)",
    }
