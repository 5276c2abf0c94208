"""A scoring run as a discrete-event simulation: workers that read, compute and commit units; drivers; a storage.

It hands out units as :mod:`xmodal_dist.score.feed` does: in groups that shrink towards the end, the next one asked for
when a worker begins the last unit of the one before. Drivers and storage are servers that take requests in the order in
which they come. Whatever a worker had not committed when it was lost is scored again. Time is virtual and randomness
seeded, so equal arguments give equal results. Costs O(units log workers).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xmodal_dist.plan.settings import Assumptions
from xmodal_dist.score.plan import group_sizes

__all__ = ["Simulated", "simulate"]

_DRAWS = 8192
_BEGIN, _ASK, _COMMIT, _DONE, _LOST, _BACK = range(6)


class Simulated(NamedTuple):
    """What happened between the first worker's start-up and the last unit's receipt.

    Attributes:
        units: done, each once.
        span_s: until the last receipt was taken.
        work_s: of workers at units that were committed, storage included.
        lost_s: of workers at units that were not: they died or failed.
        workers_lost: how often one was.
        units_repeated: attempts beyond the first of each unit.
        driver_s: work of all drivers.
        storage_s: time that the storage needs for its requests, or its bytes, whichever is longer.
        quartiles_s: when a quarter and three quarters of the units were done.
        done: [units] 1 for each unit that is.
    """

    units: int
    span_s: float
    work_s: float
    lost_s: float
    workers_lost: int
    units_repeated: int
    driver_s: float
    storage_s: float
    quartiles_s: tuple[float, float]
    done: bytes


def simulate(assumptions: Assumptions, units: int, rows: float, workers: int, seed: int = 0) -> Simulated:
    """Score ``units`` units of ``rows`` records each on some workers.

    Args:
        assumptions: of the run.
        units: at least 1.
        rows: records of each unit.
        workers: at least 1; more than units have nothing to do.
        seed: of durations, speeds and losses.
    """
    return _Run(assumptions, units, rows, workers, seed).run()


class _Server:
    """Serves one request after the other, in the order in which they come."""

    def __init__(self) -> None:
        self._free_s = self.busy_s = 0.0

    def serve(self, now_s: float, service_s: float) -> float:
        """When a request that comes now is done."""
        self.busy_s += service_s
        self._free_s = (self._free_s if self._free_s > now_s else now_s) + service_s
        return self._free_s


class _Storage:
    """Requests and bytes a second, each shared by all workers; latency comes on top."""

    def __init__(self, assumptions: Assumptions) -> None:
        self._request_s = 1 / (assumptions.storage_requests_per_s or math.inf)
        self._byte_s = 1 / (assumptions.storage_bytes_per_s or math.inf)
        self._latency_s = assumptions.storage_latency_s
        self._requests, self._bytes = _Server(), _Server()

    def serve(self, now_s: float, requests: int, size: float) -> float:
        """When some requests, one after the other, are answered."""
        asked_s = self._requests.serve(now_s, requests * self._request_s)
        return max(asked_s, self._bytes.serve(now_s, size * self._byte_s)) + requests * self._latency_s

    @property
    def busy_s(self) -> float:
        """Of whichever limit is nearer."""
        return max(self._requests.busy_s, self._bytes.busy_s)


class _Draws:
    """Random numbers, drawn many at a time."""

    def __init__(self, assumptions: Assumptions, unit_s: float, workers: int, seed: int) -> None:
        # A stream for each purpose: what one run draws more of moves nothing else.
        unit, speed, loss, failure = (np.random.default_rng((seed, stream)) for stream in range(4))
        self.slowness: list[float] = _log_normal(assumptions.worker_variation, speed, workers).tolist()
        self._unit, self._unit_s, self._variation = unit, unit_s, assumptions.unit_variation
        self._mtbf_s = 3600 * (assumptions.worker_mtbf_hours or math.inf)
        self._loss, self._failure, self._rate = loss, failure, assumptions.unit_failure_rate
        self._units: list[float] = []

    def unit_s(self, worker: int) -> float:
        """Seconds of a unit on a worker."""
        if not self._variation:
            return self._unit_s * self.slowness[worker]
        if not self._units:
            self._units = (self._unit_s * _log_normal(self._variation, self._unit, _DRAWS)).tolist()
        return self._units.pop() * self.slowness[worker]

    def life_s(self) -> float:
        """How long a worker lives from now on."""
        return float(self._loss.exponential(self._mtbf_s)) if self._mtbf_s < math.inf else math.inf

    def fails(self) -> bool:
        """Whether an attempt comes to nothing."""
        return self._rate > 0 and float(self._failure.random()) < self._rate


def _log_normal(variation: float, generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """[count] of mean 1 with a coefficient of variation."""
    sigma = math.sqrt(math.log1p(variation**2))
    return generator.lognormal(-(sigma**2) / 2, sigma, count)


@dataclass
class _Worker:
    """Units [unit, stop) are left of its group; the next group is there from ``ready_s`` on."""

    unit: int = 0
    stop: int = 0
    next: tuple[int, int] | None = None
    ready_s: float = 0.0
    began_s: float = math.nan
    dies_s: float = math.inf


class _Run:
    def __init__(self, assumptions: Assumptions, units: int, rows: float, workers: int, seed: int) -> None:
        self._a, self._units = assumptions, units
        self._draws = _Draws(assumptions, rows * assumptions.seconds_per_record, workers, seed)
        self._input_bytes = rows * assumptions.input_bytes_per_record
        self._output_bytes = rows * assumptions.output_bytes_per_record
        self._storage = _Storage(assumptions)
        self._drivers = [_Server() for _ in range(assumptions.drivers)]
        self._workers = [_Worker() for _ in range(workers)]
        self._sizes = iter(group_sizes(units, workers))
        self._handed = 0
        self._returned: deque[tuple[int, int]] = deque()
        self._idle: list[int] = []
        self._events: list[tuple[float, int, int, int]] = []
        self._sequence = 0
        self._done = bytearray(units)
        self._num_done = 0
        self._quartiles = [0.0, 0.0]
        self._work_s = self._lost_s = self._end_s = 0.0
        self._workers_lost = self._repeated = 0

    def run(self) -> Simulated:
        """Until every unit is done."""
        a, steps = self._a, (self._begin, self._ask, self._commit, self._finish, self._lose, self._back)
        every_s = 1 / (a.workers_started_per_s or math.inf)
        for number in range(len(self._workers)):
            self._at(a.start_s + number * every_s, _BACK, number)
        events = self._events
        while self._num_done < self._units:
            now_s, _, kind, number = heapq.heappop(events)
            steps[kind](now_s, number)
        return Simulated(
            units=self._num_done,
            span_s=self._end_s,
            work_s=self._work_s,
            lost_s=self._lost_s,
            workers_lost=self._workers_lost,
            units_repeated=self._repeated,
            driver_s=sum(driver.busy_s for driver in self._drivers),
            storage_s=self._storage.busy_s,
            quartiles_s=(self._quartiles[0], self._quartiles[1]),
            done=bytes(self._done),
        )

    def _at(self, then_s: float, kind: int, number: int) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (then_s, self._sequence, kind, number))

    def _while_alive(self, then_s: float, kind: int, number: int) -> None:
        """What a worker does next, unless it is lost before."""
        dies_s = self._workers[number].dies_s
        if then_s >= dies_s:
            self._at(dies_s, _LOST, number)
        else:
            self._at(then_s, kind, number)

    def _back(self, now_s: float, number: int) -> None:
        self._workers[number].dies_s = now_s + self._draws.life_s()
        self._begin(now_s, number)

    def _begin(self, now_s: float, number: int) -> None:
        worker = self._workers[number]
        if worker.unit == worker.stop and not self._take_group(now_s, number):
            return
        worker.began_s = now_s
        if worker.unit + 1 == worker.stop:
            # An event of its own: workers that have nothing come first.
            self._at(now_s, _ASK, number)
        read_s = self._storage.serve(now_s, self._a.read_requests_per_unit, self._input_bytes)
        self._while_alive(max(read_s, now_s + self._draws.unit_s(number)), _COMMIT, number)

    def _take_group(self, now_s: float, number: int) -> bool:
        """Whether the worker may begin now; if not, it is called when it may, or idle."""
        worker = self._workers[number]
        if worker.next is None:
            self._ask(now_s, number)
        if worker.next is None:
            self._idle.append(number)
            return False
        if worker.ready_s > now_s:
            self._while_alive(worker.ready_s, _BEGIN, number)
            return False
        (worker.unit, worker.stop), worker.next = worker.next, None
        return True

    def _ask(self, now_s: float, number: int) -> None:
        """The driver gives the worker another group, if there is one."""
        worker = self._workers[number]
        if worker.next is not None or now_s >= worker.dies_s:
            return
        if self._returned:
            worker.next = self._returned.popleft()
        elif size := next(self._sizes, 0):
            worker.next = (self._handed, self._handed + size)
            self._handed += size
        else:
            return
        worker.ready_s = self._driver_of(number).serve(now_s, self._a.driver_s_per_group)

    def _commit(self, now_s: float, number: int) -> None:
        if self._draws.fails():
            self._lose_unit(now_s, number)
            self._begin(now_s, number)
            return
        a = self._a
        end_s = self._storage.serve(now_s, a.commit_requests_per_unit, self._output_bytes) + a.commit_s
        self._while_alive(end_s, _DONE, number)

    def _finish(self, now_s: float, number: int) -> None:
        worker = self._workers[number]
        assert not self._done[worker.unit], "a unit was done twice"
        self._done[worker.unit] = 1
        self._num_done += 1
        self._work_s += now_s - worker.began_s
        taken_s = self._driver_of(number).serve(now_s, self._a.driver_s_per_unit)
        self._end_s = max(self._end_s, taken_s)
        if self._num_done == self._units // 4:
            self._quartiles[0] = now_s
        if self._num_done == self._units * 3 // 4:
            self._quartiles[1] = now_s
        worker.unit += 1
        worker.began_s = math.nan
        self._begin(now_s, number)

    def _lose(self, now_s: float, number: int) -> None:
        """A worker is gone: what it had and had not committed goes back, and a replacement comes."""
        worker = self._workers[number]
        self._workers_lost += 1
        if not math.isnan(worker.began_s):
            self._lose_unit(now_s, number)
        groups = [(worker.unit, worker.stop), worker.next]
        self._returned.extend(group for group in groups if group is not None and group[0] < group[1])
        worker.unit = worker.stop = 0
        worker.next = None
        self._at(now_s + self._a.replacement_s, _BACK, number)
        while self._idle and self._returned:
            # Exponential lives have no memory: what happened while it was idle changes nothing.
            self._back(now_s, self._idle.pop())

    def _lose_unit(self, now_s: float, number: int) -> None:
        worker = self._workers[number]
        self._lost_s += now_s - worker.began_s
        self._repeated += 1
        worker.began_s = math.nan

    def _driver_of(self, number: int) -> _Server:
        return self._drivers[number % len(self._drivers)]
