"""Runs sides in fresh processes, interleaved, and turns their readings into figures.

A benchmark is a module with ``run(options: Options) -> list[Figure]``. It describes its sides, calls
:func:`run_rounds`, asserts that all sides computed the same thing, and makes one :class:`Figure` of each comparison
with :func:`compare` (or by hand where a figure is no ratio). ``__main__`` prints what it returns.

What is measured: the processor time of the whole process tree between two readings (see ``processes.py``), so neither
imports nor process start nor ``ray.init`` count, and load from outside moves it little. What is compared: the median
over rounds of the ratio within a round; each round runs every side once, every other round in reverse order.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from benchmarks.processes import ProcessTree
from benchmarks.protocol import PIPES

__all__ = [
    "REPOSITORY",
    "Figure",
    "Measurement",
    "Options",
    "Run",
    "Side",
    "compare",
    "figure_of",
    "machine",
    "require",
    "run_rounds",
    "run_side",
    "say",
]

REPOSITORY = Path(__file__).resolve().parent.parent
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "DAFT_PROGRESS_BAR": "0",
    "PYTHONPATH": str(REPOSITORY),
}
_NUM_LINES_OF_ERROR = 25
_GRACE_S = 20.0


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        cache: folder of the generated data.
        peers_python: interpreter of the peers' virtual environment.
        pairs: rounds of every comparison.
        rows: records to use; None takes the benchmark's own number.
        timeout_s: limit of one side's run.
    """

    cache: Path
    peers_python: Path
    pairs: int = 5
    rows: int | None = None
    timeout_s: float = 900.0


@dataclass(frozen=True)
class Side:
    """A program to measure.

    Attributes:
        name: how tables and figures call it.
        module: dotted name, run with ``python -m``; it speaks ``protocol.py``.
        request: what it is asked, JSON.
        peer: whether it runs in the peers' environment instead of the project's.
        sample_every_s: how often its memory is read.
    """

    name: str
    module: str
    request: dict[str, Any]
    peer: bool = False
    sample_every_s: float = 0.25


@dataclass(frozen=True)
class Measurement:
    """Readings of one region of one run: of the whole process tree, start-up excluded."""

    cpu_s: float
    wall_s: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Run:
    """One run of a side.

    Attributes:
        regions: the measured regions by name.
        result: what the side handed over.
        versions: of the libraries it used.
    """

    regions: dict[str, Measurement]
    result: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True)
class Figure:
    """One compared figure: a row of the table and a JSON line.

    Attributes:
        name: ``benchmark/ours vs peer``.
        ratio: the figure itself in ``unit``; by default the peer's processor time over ours.
        goal: what it should reach; None where nothing was promised.
        unit: ``x`` for a ratio.
        better: whether the goal is a floor (``higher``) or a ceiling (``lower``).
        cpu_ms_per_record: our median.
        peer_cpu_ms_per_record: theirs; None where there is no peer.
        wall_s: median of our measured region.
        peak_memory_bytes: largest of our process tree in any round.
        n: records of a run and rounds.
        load: 1-minute load average when the figure was made, and CPUs.
        versions: of the libraries of both sides.
        notes: what else a reader should know.
    """

    name: str
    ratio: float
    goal: float | None
    cpu_ms_per_record: float
    peer_cpu_ms_per_record: float | None
    wall_s: float
    peak_memory_bytes: int
    n: dict[str, int]
    versions: dict[str, Any]
    unit: str = "x"
    better: Literal["higher", "lower"] = "higher"
    load: dict[str, float] = field(default_factory=lambda: machine()["load"])
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.better == "higher" else self.ratio <= self.goal

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**asdict(self), "met": self.met})


def say(text: str) -> None:
    """A line for whoever watches; standard output is for the figures."""
    print(text, file=sys.stderr, flush=True)


def require(condition: bool, message: str) -> None:
    """Stop the benchmark: figures of sides that computed different things mean nothing."""
    if not condition:
        raise AssertionError(message)


def machine() -> dict[str, Any]:
    """Where this runs and how busy it is."""
    return {
        "load": {"load_1min": round(os.getloadavg()[0], 2), "cpus": float(os.cpu_count() or 1)},
        "platform": platform.platform(),
    }


def run_side(side: Side, options: Options) -> Run:
    """Run a side once in a fresh process and take the readings where it asks for them."""
    python = str(options.peers_python) if side.peer else sys.executable
    command = [python, "-m", side.module, json.dumps(side.request)]
    from_side, to_harness = os.pipe()
    from_harness, to_side = os.pipe()
    environment = {**os.environ, **_ENVIRONMENT, PIPES: f"{from_harness},{to_harness}"}
    with tempfile.TemporaryFile("w+") as output, open(from_side) as messages:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=REPOSITORY,
            pass_fds=(from_harness, to_harness),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        os.close(to_harness)
        os.close(from_harness)
        try:
            run = _listen(process, messages, to_side, side.sample_every_s, options.timeout_s)
        finally:
            os.close(to_side)
        if run is None:
            output.seek(0)
            tail = "".join(output.readlines()[-_NUM_LINES_OF_ERROR:])
            raise RuntimeError(f"{side.name} ({side.module}) ended without a result:\n{tail}")
    return run


def _listen(
    process: subprocess.Popen[bytes],
    messages: IO[str],
    to_side: int,
    sample_every_s: float,
    timeout_s: float,
) -> Run | None:
    """Follow one run to its result, then end its process tree; None if it ended before."""
    tree = ProcessTree(process.pid)
    regions: dict[str, Measurement] = {}
    began_cpu_s = began_s = 0.0
    timer = _kill_after(process, timeout_s)
    try:
        with tree.watched(sample_every_s):
            for line in messages:
                now_s = time.perf_counter()
                message = json.loads(line)
                match message["event"]:
                    case "begin":
                        tree.take_peak_bytes()
                        began_cpu_s, began_s = tree.cpu_s(), time.perf_counter()
                    case "end":
                        cpu_s = tree.cpu_s() - began_cpu_s
                        tree.sample_memory()
                        regions[message["region"]] = Measurement(
                            cpu_s, now_s - began_s, tree.take_peak_bytes()
                        )
                    case "result":
                        os.write(to_side, b"\n")
                        # So that Ray ends its session in order; whatever is left after that is killed.
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            process.wait(_GRACE_S)
                        return Run(regions, message["result"], message["versions"])
                os.write(to_side, b"\n")
        return None
    finally:
        timer.cancel()
        process.wait()


def _kill_after(process: subprocess.Popen[bytes], timeout_s: float) -> threading.Timer:
    timer = threading.Timer(timeout_s, process.kill)
    timer.daemon = True
    timer.start()
    return timer


def run_rounds(
    sides: Sequence[Side], options: Options, check: Callable[[Side, Run], None] | None = None
) -> dict[str, list[Run]]:
    """Every side once a round, every other round in reverse order.

    Args:
        sides: names must differ.
        options: how many rounds.
        check: called after every run; raises if the result is wrong.

    Returns:
        The runs of each side, in order of rounds.
    """
    runs: dict[str, list[Run]] = {side.name: [] for side in sides}
    for number in range(options.pairs):
        for side in sides if number % 2 == 0 else reversed(sides):
            began_s = time.perf_counter()
            run = run_side(side, options)
            if check is not None:
                check(side, run)
            runs[side.name].append(run)
            cpu = ", ".join(f"{name} {m.cpu_s:.2f}" for name, m in run.regions.items())
            spent_s = time.perf_counter() - began_s
            say(f"  round {number + 1}/{options.pairs} {side.name}: CPU-s {cpu} (run took {spent_s:.0f} s)")
    return runs


def figure_of(
    name: str,
    runs: tuple[Sequence[Run], str],
    values: Sequence[float],
    goal: float | None,
    *,
    rows: int,
    unit: str,
    better: Literal["higher", "lower"] = "higher",
    peer: tuple[Sequence[Run], str] | None = None,
    notes: dict[str, Any] | None = None,
) -> Figure:
    """The median of some values, with their range in the notes.

    Args:
        name: of the figure.
        runs: our runs and the region that counts.
        values: one a round, or one of all rounds.
        goal: what they should reach.
        rows: records of one region.
        unit: of the values.
        better: whether the goal is a floor or a ceiling.
        peer: the peer's runs of the same rounds.
        notes: see :class:`Figure`.
    """
    own = _readings(runs)
    versions = {"ours": runs[0][0].versions}
    notes = {"min": round(min(values), 4), "max": round(max(values), 4), **(notes or {})}
    if peer is not None:
        other = _readings(peer)
        versions["peer"] = peer[0][0].versions
        notes["peer_wall_s"] = round(statistics.median(m.wall_s for m in other), 3)
        notes["peer_peak_memory_bytes"] = max(m.peak_memory_bytes for m in other)
    return Figure(
        name=name,
        ratio=round(statistics.median(values), 4),
        goal=goal,
        unit=unit,
        better=better,
        cpu_ms_per_record=_ms_per_record(own, rows),
        peer_cpu_ms_per_record=None if peer is None else _ms_per_record(other, rows),
        wall_s=round(statistics.median(m.wall_s for m in own), 3),
        peak_memory_bytes=max(m.peak_memory_bytes for m in own),
        n={"records": rows, "pairs": len(own)},
        versions=versions,
        notes=notes,
    )


def compare(
    name: str,
    ours: tuple[Sequence[Run], str],
    peer: tuple[Sequence[Run], str],
    rows: int,
    goal: float | None,
    notes: dict[str, Any] | None = None,
) -> Figure:
    """The peer's processor time over ours, round by round; arguments as those of :func:`figure_of`."""
    ratios = [b.cpu_s / a.cpu_s for a, b in zip(_readings(ours), _readings(peer), strict=True)]
    return figure_of(name, ours, ratios, goal, rows=rows, unit="x", peer=peer, notes=notes)


def _readings(runs: tuple[Sequence[Run], str]) -> list[Measurement]:
    return [run.regions[runs[1]] for run in runs[0]]


def _ms_per_record(readings: Iterable[Measurement], rows: int) -> float:
    return round(statistics.median(m.cpu_s for m in readings) * 1e3 / rows, 5)
