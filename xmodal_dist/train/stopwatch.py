"""A stopwatch over the training loop: wall time and thread CPU time by stage, of the whole and of its parts.

Kernels on accelerators run behind the loop, so wall time around a call there is the time of its launch. One step in 50
is timed with the device idle before and after each stage, and stands for the others.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch

from xmodal_dist import runtime
from xmodal_dist.pipeline.stream import Step

__all__ = ["Figures", "RankTiming", "Stopwatch"]

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
        first_step: in the attempt's first step.
        sampled: steps timed with the device idle around each stage, and their seconds by stage; none on CPUs.
        reading: records read by placement (``rows_local``, ``rows_ray``), those that came from the cache
            (``rows_cached``), and values that took a slower decoder (``fallback_...``).
        first_batch_s: from the rank being up to its first batch in hand; None without a batch.
        epoch_gap_s: longest wait for the first batch after a switch between training and validation.
        machine, cores: its host, and the cores that processes may use there.
        threads: threads of a kernel.
    """

    total: Figures
    steady: Figures
    first_step: Figures
    sampled: Figures
    reading: Counter[str]
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
        self._first_step = Figures()
        self._training = Figures()
        self._reading = Counter[str]()
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

    def handed(self, step: Step) -> None:
        """Readers handed over the rows of a step."""
        self.now.cpu_s["reading"] += step.cpu_s
        self._reading[f"rows_{step.placement}"] += int((step.records.ids >= 0).sum())
        self._reading["rows_cached"] += step.cached_rows
        self._reading.update({f"fallback_{what}": count for what, count in step.fallbacks.items()})

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
            self.read(), self._steady, self._first_step, self._sampled, self._reading,
            self._first_batch_s, self._epoch_gap_s,
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
        if self._phase == "first_step":
            self._first_step += spent
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
