"""Wall time, cost and bottleneck of a scoring run on any number of workers."""

from __future__ import annotations

import math
from typing import NamedTuple

from xmodal_dist.errors import UsageError
from xmodal_dist.plan.settings import Assumptions
from xmodal_dist.plan.simulate import Simulated, simulate
from xmodal_dist.score.ledger import PART_READERS

__all__ = ["MAX_WORKERS", "Forecast", "forecast"]

MAX_WORKERS = 10_000
_MAX_RECORDS = 10**13
_COMFORTABLE = 0.5


class Forecast(NamedTuple):
    """A run on some workers. All seconds are of the wall clock.

    Attributes:
        workers: how many.
        units: of the run.
        rows_per_unit: at which a unit ends.
        simulated_units: of those; where they are fewer, the rate of the middle half of them was extrapolated.
        wall_s: of the whole command.
        planning_s: of it, before the workers start.
        finishing_s: of it, after the last unit: other drivers' parts, listing, the manifest.
        records_per_s: over the whole command.
        efficiency: records times seconds a record, over workers times wall: 1 is linear.
        worker_hours: paid.
        cost: of them; None without a price.
        lost_worker_hours: of attempts that came to nothing.
        workers_lost: and replaced.
        utilisation: share of the wall time in which ``workers``, ``driver``, ``storage`` and ``metadata`` (planning and
            finishing) were at work, and that ``start`` took.
        bottleneck: one of these, or ``units`` where they are too few for the workers.
        advice: what to do about it.
    """

    workers: int
    units: int
    rows_per_unit: int
    simulated_units: int
    wall_s: float
    planning_s: float
    finishing_s: float
    records_per_s: float
    efficiency: float
    worker_hours: float
    cost: float | None
    lost_worker_hours: float
    workers_lost: float
    utilisation: dict[str, float]
    bottleneck: str
    advice: str


def forecast(assumptions: Assumptions, records: int, workers: int, seed: int = 0) -> Forecast:
    """Simulate a run.

    Args:
        assumptions: of the run.
        records: at least 1.
        workers: 1 to :data:`MAX_WORKERS`.
        seed: of the simulation.

    Raises:
        UsageError: numbers out of range, or more drivers than workers.
    """
    if not 1 <= records <= _MAX_RECORDS:
        raise UsageError(f"--records {records}: expected 1 to {_MAX_RECORDS:.0e}")
    if not 1 <= workers <= MAX_WORKERS:
        raise UsageError(f"--workers {workers}: expected 1 to {MAX_WORKERS}")
    if assumptions.drivers > workers:
        raise UsageError(f"drivers={assumptions.drivers}: more than {workers} workers; set fewer drivers")
    units = math.ceil(records / assumptions.rows_per_unit)
    simulated = min(units, _slice_units(assumptions, workers))
    found = simulate(assumptions, simulated, records / units, workers, seed)
    span_s, scale = _whole_span_s(found, units), units / simulated
    planning_s = units * assumptions.plan_s_per_unit
    finishing_s = _finishing_s(assumptions, units)
    wall_s = planning_s + span_s + finishing_s
    ramp_s = (workers - 1) / (assumptions.workers_started_per_s or math.inf)
    utilisation = {
        "workers": found.work_s * scale / (workers * wall_s),
        "driver": found.driver_s * scale / (assumptions.drivers * wall_s),
        "storage": found.storage_s * scale / wall_s,
        "metadata": (planning_s + finishing_s) / wall_s,
        "start": (assumptions.start_s + ramp_s / 2) / wall_s,
    }
    worker_hours = workers * wall_s / 3600
    price = assumptions.price_per_worker_hour
    bottleneck = _bottleneck(utilisation, units, workers)
    return Forecast(
        workers=workers,
        units=units,
        rows_per_unit=assumptions.rows_per_unit,
        simulated_units=simulated,
        wall_s=wall_s,
        planning_s=planning_s,
        finishing_s=finishing_s,
        records_per_s=records / wall_s,
        efficiency=records * assumptions.seconds_per_record / (workers * wall_s),
        worker_hours=worker_hours,
        cost=None if price is None else price * worker_hours,
        lost_worker_hours=found.lost_s * scale / 3600,
        workers_lost=found.workers_lost * scale,
        utilisation=utilisation,
        bottleneck=bottleneck,
        advice=_advice(bottleneck, assumptions, units, workers, utilisation["metadata"]),
    )


def _slice_units(assumptions: Assumptions, workers: int) -> int:
    """Units that are simulated one by one: enough for a long steady middle beyond the ramp."""
    ramp_units = (
        workers * workers / (assumptions.workers_started_per_s or math.inf) / max(assumptions.unit_s, 1e-9)
    )
    steady = max(20_000, min(1000 * workers, 1_000_000), 200 * workers)
    return steady + min(int(4 * ramp_units), 1_000_000)


def _whole_span_s(found: Simulated, units: int) -> float:
    """The slice's span, and the units that it lacks at the rate of its middle half."""
    if units == found.units:
        return found.span_s
    first_s, last_s = found.quartiles_s
    middle = found.units * 3 // 4 - found.units // 4
    return found.span_s + (units - found.units) * (last_s - first_s) / middle


def _finishing_s(assumptions: Assumptions, units: int) -> float:
    """A driver reads the parts of others, several at a time; lists the output; writes its table."""
    others = units * (1 - 1 / assumptions.drivers)
    read_s = max(
        assumptions.storage_latency_s / PART_READERS, 1 / (assumptions.storage_requests_per_s or math.inf)
    )
    listing_s = units / (assumptions.objects_listed_per_s or math.inf)
    return others * read_s + listing_s + units * assumptions.finish_s_per_unit


def _bottleneck(utilisation: dict[str, float], units: int, workers: int) -> str:
    longest = max(utilisation, key=utilisation.__getitem__)
    return "units" if longest in ("workers", "start") and units < 4 * workers else longest


def _advice(bottleneck: str, assumptions: Assumptions, units: int, workers: int, metadata: float) -> str:
    rows, limits = assumptions.rows_per_unit, _limits(assumptions)
    if bottleneck == "workers":
        what = min(limits, key=limits.__getitem__)
        if limits[what] == math.inf:
            return "more workers help"
        more = f"up to about {_round(limits[what]):,}, where the {what} is the limit"
        return f"more workers help {more}" if limits[what] > workers else f"near the limit of the {what}"
    if bottleneck == "units":
        smaller = _set_rows(assumptions, max(1.0, rows * units / (16 * workers)))
        return f"{units:,} units for {workers:,} workers: {smaller}, or take fewer workers"
    if bottleneck == "start":
        return "starting takes most of the time: take fewer workers, or a cluster that is up"
    if bottleneck == "metadata":
        larger = _set_rows(assumptions, rows * metadata / 0.1)
        return f"planning and listing take {metadata:.0%}: {larger}, in larger input files"
    if bottleneck == "storage" and limits["storage's bytes"] < limits["storage's requests"]:
        most = _round(limits["storage's bytes"])
        return (
            f"the storage's bytes are the limit: take {most:,} workers, which do as much, or nearer storage"
        )
    load = workers / limits["driver" if bottleneck == "driver" else "storage's requests"]
    larger = _set_rows(assumptions, rows * load / _COMFORTABLE)
    if bottleneck == "storage":
        return f"{larger}, in row groups as large: fewer requests"
    drivers = math.ceil(assumptions.drivers * load / _COMFORTABLE)
    return f"{larger}, or give the command {drivers:,} times, each with its share of the workers"


def _set_rows(assumptions: Assumptions, rows: float) -> str:
    """How to make units of some rows; their bytes must be allowed too."""
    count = _round(rows)
    size = math.ceil(count * assumptions.input_bytes_per_record)
    also = f" and score.unit_bytes={_round(size)}" if size > assumptions.unit_bytes else ""
    return f"set score.unit_rows={count}{also}"


def _limits(assumptions: Assumptions) -> dict[str, float]:
    """How many workers keep each of what they share wholly busy."""
    a = assumptions
    size = a.rows_per_unit * (a.input_bytes_per_record + a.output_bytes_per_record)
    requests = a.read_requests_per_unit + a.commit_requests_per_unit
    needed_s = {
        "driver": a.driver_s_per_unit / a.drivers,
        "storage's requests": requests / (a.storage_requests_per_s or math.inf),
        "storage's bytes": size / (a.storage_bytes_per_s or math.inf),
    }
    return {what: a.unit_s / seconds if seconds else math.inf for what, seconds in needed_s.items()}


def _round(value: float) -> int:
    """To two digits."""
    digits = max(0, math.floor(math.log10(max(value, 1))) - 1)
    return int(round(value / 10**digits) * 10**digits)
