"""Where the time of a run went, and how close it came to what its machines can do.

Every rank keeps a stopwatch: wall time and thread CPU time by stage. At the end the ranks' figures are put together and
compared with the bound, the records a second that no training loop with these stages on these machines can pass:

- On CPUs readers and workers share the cores, so nothing overlaps into free time and costs add up: ``cores`` = K / (sum
  of CPU-seconds a record of reading, host-to-device, forward, backward and optimizer), K the cores that workers and
  readers may use together. A loop is one thread, so ``loops`` = workers * threads / (the same sum without reading).
- On accelerators the stages overlap: ``readers`` = K / (CPU-seconds a record of reading), ``device`` = records of a
  step / (device seconds of its host-to-device, forward, backward and optimizer).

The bound is the smallest of its limits. Its costs are measured in the same run: the figure says how much the loop, its
waits and its workers' waiting for each other take, not how good the kernels are. CPU time is that of the loop's thread;
with several threads a kernel the bound comes out too high, and the share too low.

Kernels on accelerators run behind the loop, so wall time around a call there is the time of its launch. One step in 50
is timed with the device idle before and after each stage, and stands for the others. What the loop waited for data
while the device was busy cost nothing and is not shown. Gradients that DDP averages itself (``gradient_order: fast``)
travel during backward, and waiting for other ranks is part of it; ``synchronise`` is all other waiting for ranks.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from xmodal_dist import runtime

__all__ = ["Figures", "RankTiming", "Stopwatch", "epoch_figures", "summarise"]

_STAGES = (
    "start_up", "restarts", "wait_for_data", "host_to_device", "forward", "backward", "optimizer", "synchronise",
    "evaluation", "checkpoint", "other",
)  # fmt: skip
_LOOP_STAGES = ("host_to_device", "forward", "backward", "optimizer")
_DEVICE_STAGES = (*_LOOP_STAGES, "synchronise")
_NETWORK = "the network sets the pace: add workers or accelerators, or make the model or its inputs smaller"
_IDLE_CORES = "the network sets the pace while cores are idle: raise train.num_workers"

_SENTENCES = {
    "start_up": "start-up took most of the time: the run is short; more epochs or data would not cost in proportion",
    "restarts": "restarts took most of the time: see why workers were lost, and set train.checkpoint_every_steps "
    "lower so that less is repeated",
    "wait_for_data": "reading was the bottleneck: add CPUs for readers, or pack media smaller",
    "host_to_device": "copies to the device were the bottleneck: make inputs smaller",
    "forward": _NETWORK,
    "backward": _NETWORK,
    "optimizer": "the optimizer was the bottleneck: a larger train.batch_size would amortise it",
    "synchronise": "workers waited for each other: use workers of equal speed, or a larger train.batch_size",
    "evaluation": "validation took most of the time: validate on fewer records",
    "checkpoint": "checkpoints took most of the time: raise train.checkpoint_every_steps",
    "other": "the loop itself took most of the time: a larger train.batch_size or train.log_every_steps amortises it",
}
_SAMPLE_EVERY_STEPS, _FIRST_SAMPLE = 50, 4


def _by_stage() -> defaultdict[str, float]:
    return defaultdict(float)


@dataclass
class Figures:
    """What happened between two moments: wall seconds, steps and records trained on, and seconds by stage.

    ``records`` are those of one rank's steps, rejected ones included. ``cpu_s`` is thread CPU time of the loop by
    stage, and under ``reading`` that of the readers whose rows the loop was handed.
    """

    wall_s: float = 0.0
    steps: int = 0
    records: int = 0
    seconds: dict[str, float] = field(default_factory=_by_stage)
    cpu_s: dict[str, float] = field(default_factory=_by_stage)

    def __add__(self, other: Figures) -> Figures:
        return self._combine(other, 1)

    def __sub__(self, other: Figures) -> Figures:
        return self._combine(other, -1)

    def _combine(self, other: Figures, sign: int) -> Figures:
        def join(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
            return {name: a.get(name, 0.0) + sign * b.get(name, 0.0) for name in a.keys() | b.keys()}

        return Figures(
            self.wall_s + sign * other.wall_s,
            self.steps + sign * other.steps,
            self.records + sign * other.records,
            join(self.seconds, other.seconds),
            join(self.cpu_s, other.cpu_s),
        )


@dataclass(frozen=True)
class RankTiming:
    """What one rank measured, as it travels to rank 0.

    Attributes:
        total: since the rank was up.
        steady: in the steps of epochs, without the attempt's first, evaluation and the ends of epochs.
        sampled: steps timed with the device idle around each stage, and their seconds by stage; none on CPUs.
        first_batch_s: from the rank being up to its first batch in hand; None without a batch.
        epoch_gap_s: longest wait for the first batch after a switch between training and validation.
        machine, cores: its host, and the cores that processes may use there.
        threads: threads of a kernel.
    """

    total: Figures
    steady: Figures
    sampled: Figures
    first_batch_s: float | None
    epoch_gap_s: float
    machine: str
    cores: int
    threads: int


class Stopwatch:
    """Seconds by stage, of an attempt and of its parts; stages do not nest.

    Args:
        synchronise: waits until the device is idle; None where calls return when their work is done.
    """

    def __init__(self, synchronise: Callable[[], None] | None = None) -> None:
        self.began_s = time.perf_counter()
        self.now = Figures()
        self._synchronise = synchronise
        self._sampling = False
        self._sampled = Figures()
        self._phase = "start"
        self._at_border = False
        self._marks = {"phase": Figures(), "epoch": Figures(), "sample": Figures()}
        self._steady = Figures()
        self._training = Figures()
        self._first_batch_s: float | None = None
        self._epoch_gap_s = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's wall time and this thread's CPU time to a stage."""
        self._settle()
        start_s, start_cpu_s = time.perf_counter(), time.thread_time()
        try:
            yield
            self._settle()
        finally:
            spent_s = time.perf_counter() - start_s
            self.now.seconds[name] += spent_s
            self.now.cpu_s[name] += time.thread_time() - start_cpu_s
            if name == "wait_for_data":
                self._note_wait(spent_s)

    def begin(self, phase: str) -> None:
        """The loop turns to the steps of an epoch (``train``) or to its validation (``val``)."""
        self._switch("first_step" if phase == "train" and not self.now.steps else phase)
        self._at_border = True

    def step(self, records: int) -> None:
        """A training step on so many records of this rank is done."""
        self.now.steps += 1
        self.now.records += records
        if self._phase == "first_step":
            self._switch("train")
        if self._sampling:
            self._sampled += self.read() - self._marks["sample"]
        self._sampling = (
            self._synchronise is not None and self.now.steps % _SAMPLE_EVERY_STEPS == _FIRST_SAMPLE
        )
        if self._sampling:
            self._marks["sample"] = self.read()

    def read(self) -> Figures:
        """All figures up to now."""
        return replace(self.now, wall_s=self.wall_s()) + Figures()

    def ready(self, before_s: float, again: bool) -> None:
        """The loop begins; ``before_s`` went by before this stopwatch, in earlier attempts if this is not the first."""
        self.now.seconds["restarts" if again else "start_up"] += before_s
        self.now.seconds["start_up"] += self.wall_s()
        self._marks["epoch"] = self.read()

    def epoch(self) -> tuple[Figures, Figures]:
        """Figures since the last epoch's were taken, and those of this epoch's training alone."""
        self._switch("end")
        whole, training = self.read() - self._marks["epoch"], self._training
        self._marks["epoch"], self._training = self.read(), Figures()
        return whole, training

    def timing(self) -> RankTiming:
        """Everything, for :func:`summarise`."""
        self._switch("end")
        return RankTiming(
            self.read(), self._steady, self._sampled, self._first_batch_s, self._epoch_gap_s,
            socket.gethostname(), runtime.usable_cores(), torch.get_num_threads(),
        )  # fmt: skip

    def wall_s(self) -> float:
        """Seconds since this stopwatch was made."""
        return time.perf_counter() - self.began_s

    def _switch(self, phase: str) -> None:
        now = self.read()
        spent = now - self._marks["phase"]
        if self._phase == "train":
            self._steady += spent
        if self._phase in ("first_step", "train"):
            self._training += spent
        self._marks["phase"] = now
        self._phase, self._sampling = phase, False

    def _settle(self) -> None:
        if self._sampling and self._synchronise is not None:
            self._synchronise()

    def _note_wait(self, spent_s: float) -> None:
        if self._first_batch_s is None:
            self._first_batch_s = self.wall_s()
        elif self._at_border:
            self._epoch_gap_s = max(self._epoch_gap_s, spent_s)
        self._at_border = False


def epoch_figures(ranks: Sequence[tuple[Figures, Figures]]) -> dict[str, Any]:
    """What an epoch's line and TensorBoard show.

    Args:
        ranks: what :meth:`Stopwatch.epoch` gave on each rank, rank 0 first.

    Returns:
        ``wall_s``; ``records_per_s`` of all ranks while they trained, without validation and checkpoints;
        ``wait_for_data_s`` of the rank that waited longest; ``stages_s``, the mean over ranks as their loops saw it.
    """
    wholes = [whole for whole, _ in ranks]
    stages = _mean([{**w.seconds, "other": w.wall_s - sum(w.seconds.values())} for w in wholes])
    return {
        "wall_s": round(wholes[0].wall_s, 3),
        "records_per_s": round(_rate([training for _, training in ranks]) or 0.0, 1),
        "wait_for_data_s": round(max(w.seconds.get("wait_for_data", 0.0) for w in wholes), 3),
        "stages_s": {name: round(stages.get(name, 0.0), 3) for name in _STAGES if stages.get(name)},
    }


def summarise(
    ranks: Sequence[RankTiming], wall_s: float, records: int, cpu_s: float, cores: float
) -> dict[str, Any]:
    """The content of goodput.json.

    Args:
        ranks: each rank's figures, rank 0 first.
        wall_s: seconds from the start of the command.
        records: records trained on, over all workers and epochs of this attempt.
        cpu_s: CPU-seconds of all workers and readers.
        cores: CPU cores that workers and readers may use together.

    Returns:
        Figures and, in ``binding_stage``, what they mean. ``stages_s`` are means over ranks and add up to ``wall_s``;
        ``steady`` is the training of epochs without start-up, evaluation and checkpoints, ``bound`` and
        ``share_of_bound`` what the module's text defines, None where there was too little to measure.
    """
    stages = _mean([_seconds(rank, wall_s) for rank in ranks])
    stages = {name: round(stages.get(name, 0.0), 3) for name in _STAGES[:-1]}
    stages["other"] = round(max(0.0, wall_s - sum(stages.values())), 3)
    steady = [rank.steady for rank in ranks]
    rate = _rate(steady)
    limits = _limits(ranks, cores)
    limit = min(limits, key=limits.__getitem__) if limits else None
    share = rate / limits[limit] if rate is not None and limit is not None else None
    training_s = max(wall_s - stages["start_up"] - stages["restarts"], 1e-9)
    return {
        "wall_s": round(wall_s, 3),
        "stages_s": stages,
        "records": records,
        "records_per_s": round(records / training_s, 1),
        "cpu_s_per_record": round(cpu_s / records, 6) if records else None,
        "steady": {
            "wall_s": round(_without_checkpoints(steady[0]), 3),
            "records": sum(figures.records for figures in steady),
            "records_per_s": None if rate is None else round(rate, 1),
            "cpu_s_per_record": {name: round(value, 7) for name, value in _costs(ranks).items()},
        },
        "bound": {
            "records_per_s": None if limit is None else round(limits[limit], 1),
            "limit": limit,
            "limits": {name: round(value, 1) for name, value in limits.items()},
            "cores": cores,
        },
        "share_of_bound": None if share is None else round(share, 4),
        "max_wait_for_data_s": round(max(r.total.seconds.get("wait_for_data", 0.0) for r in ranks), 3),
        "first_batch_s": max(
            (round(r.first_batch_s, 3) for r in ranks if r.first_batch_s is not None), default=None
        ),
        "epoch_gap_s": round(max(r.epoch_gap_s for r in ranks), 3),
        "num_workers": len(ranks),
        "binding_stage": _sentence(stages, wall_s, share, limits),
    }


def _sentence(
    stages: Mapping[str, float], wall_s: float, share: float | None, limits: Mapping[str, float]
) -> str:
    """The stage that took longest, what to do about it, and how far the run was from its bound."""
    binding = max(_STAGES, key=lambda name: stages[name])
    advice = _SENTENCES[binding]
    if advice == _NETWORK and limits.get("loops", math.inf) < 0.8 * limits.get("cores", 0.0):
        advice = _IDLE_CORES
    text = f"{advice} ({binding}: {stages[binding] / max(wall_s, 1e-9):.0%} of {wall_s:.0f} s"
    return f"{text}; training ran at {share:.0%} of its bound)" if share is not None else f"{text})"


def _seconds(rank: RankTiming, wall_s: float) -> dict[str, float]:
    """Seconds by stage; on an accelerator those of the device, and of the waits only what it idled through."""
    seconds = dict(rank.total.seconds)
    if not rank.sampled.steps:
        return seconds
    scale = rank.total.steps / rank.sampled.steps
    busy = {name: rank.sampled.seconds.get(name, 0.0) * scale for name in _DEVICE_STAGES}
    known = sum(s for name, s in seconds.items() if name not in (*_DEVICE_STAGES, "wait_for_data"))
    available = max(wall_s - known, 0.0)
    fits = min(1.0, available / max(sum(busy.values()), 1e-9))
    busy = {name: s * fits for name, s in busy.items()}
    wait = min(seconds.get("wait_for_data", 0.0), max(available - sum(busy.values()), 0.0))
    return {**seconds, **busy, "wait_for_data": wait}


def _rate(ranks: Sequence[Figures]) -> float | None:
    """Records a second of all ranks; the wall time is rank 0's, which writes the checkpoints that are left out."""
    records, wall_s = sum(figures.records for figures in ranks), _without_checkpoints(ranks[0])
    return records / wall_s if records and wall_s > 0 else None


def _without_checkpoints(figures: Figures) -> float:
    return figures.wall_s - figures.seconds.get("checkpoint", 0.0)


def _costs(ranks: Sequence[RankTiming]) -> dict[str, float]:
    """CPU-seconds a record by stage in the steady part, over all ranks."""
    records = sum(rank.steady.records for rank in ranks)
    if not records:
        return {}
    names = ("reading", *_LOOP_STAGES)
    return {name: sum(rank.steady.cpu_s.get(name, 0.0) for rank in ranks) / records for name in names}


def _limits(ranks: Sequence[RankTiming], cores: float) -> dict[str, float]:
    """Records a second that each resource allows; none where there was too little to measure."""
    costs = _costs(ranks)
    reading, loop = costs.get("reading", 0.0), sum(costs.get(name, 0.0) for name in _LOOP_STAGES)
    if sampled := [rank.sampled for rank in ranks if rank.sampled.steps]:
        device_s = sum(s.seconds.get(name, 0.0) for s in sampled for name in _LOOP_STAGES)
        candidates = {
            "readers": (cores, reading),
            "device": (len(ranks) * sum(s.records for s in sampled), device_s),
        }
    else:
        candidates = {"cores": (cores, reading + loop), "loops": (sum(r.threads for r in ranks), loop)}
    return {name: amount / cost for name, (amount, cost) in candidates.items() if cost > 0}


def _mean(ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name for rank in ranks for name in rank}
    return {name: sum(rank.get(name, 0.0) for rank in ranks) / len(ranks) for name in names}
