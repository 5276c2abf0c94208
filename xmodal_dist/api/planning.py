"""Forecasts of scoring runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from xmodal_dist import storage
from xmodal_dist.errors import UsageError
from xmodal_dist.plan.calibrate import measure
from xmodal_dist.plan.forecast import Forecast, forecast
from xmodal_dist.plan.settings import Assumptions
from xmodal_dist.settings import explain, parse_override

__all__ = ["plan"]


def plan(
    records: int,
    workers: Sequence[int] = (1, 8, 64, 1000),
    *,
    from_run: str | None = None,
    seconds_per_record: float | None = None,
    price_per_worker_hour: float | None = None,
    worker_mtbf_hours: float | None = None,
    set: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Assumptions, list[Forecast]]:
    """Predict wall time, cost and bottleneck of scoring some records; nothing is run.

    Args:
        records: how many.
        workers: numbers of workers to try.
        from_run: output of a finished scoring run to measure from; what is given besides counts more.
        seconds_per_record: of one worker, where there is no run to measure from.
        price_per_worker_hour: in any currency; None leaves the cost out.
        worker_mtbf_hours: mean time between losses of a worker; None loses none.
        set: further assumptions, like ``unit_rows=65536``; see :class:`xmodal_dist.plan.settings.Assumptions`.
        seed: of the simulation.

    Returns:
        What was assumed, and a forecast for each number of workers.

    Raises:
        UsageError: neither run nor seconds a record; a number out of range.
    """
    if from_run is None and seconds_per_record is None:
        raise UsageError(
            "give --from OUTPUT, the output of a finished scoring run, or --seconds-per-record SECONDS"
        )
    content: dict[str, Any] = {} if from_run is None else measure(storage.absolute(from_run))._asdict()
    given = {
        "seconds_per_record": seconds_per_record,
        "price_per_worker_hour": price_per_worker_hour,
        "worker_mtbf_hours": worker_mtbf_hours,
    }
    content |= {name: value for name, value in given.items() if value is not None}
    for override in set:
        name, value = parse_override(override, "NAME=VALUE, for example unit_rows=65536")
        content[name] = value
    try:
        assumptions = Assumptions.model_validate(content)
    except ValidationError as error:
        raise UsageError("\n".join(explain(e) for e in error.errors())) from error
    return assumptions, [forecast(assumptions, records, number, seed) for number in workers]
