"""The command that forecasts scoring runs."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from xmodal_dist.cli.options import AsJson, show, show_result
from xmodal_dist.errors import UsageError

if TYPE_CHECKING:
    from xmodal_dist.plan.forecast import Forecast
    from xmodal_dist.plan.settings import Assumptions

__all__ = ["plan"]


def plan(
    records: Annotated[str, typer.Option(help="How many records, for example 1e10.")],
    workers: Annotated[str, typer.Option(help="Numbers of workers, with commas.")] = "1,8,64,1000",
    from_run: Annotated[
        str | None, typer.Option("--from", metavar="OUTPUT", help="Measure from this finished scoring run.")
    ] = None,
    seconds_per_record: Annotated[
        float | None, typer.Option(help="Of one worker, where there is no run to measure from.")
    ] = None,
    price_per_worker_hour: Annotated[float | None, typer.Option(help="In any currency.")] = None,
    worker_mtbf_hours: Annotated[
        float | None, typer.Option(help="Mean time between losses of a worker (crashes, preemption).")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another assumption; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulation.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Predict time, cost and bottleneck of scoring many records on many workers, by simulation."""
    from xmodal_dist import api

    assumptions, forecasts = api.plan(
        _whole("--records", records), [_whole("--workers", part) for part in workers.split(",")],
        from_run=from_run, seconds_per_record=seconds_per_record, price_per_worker_hour=price_per_worker_hour,
        worker_mtbf_hours=worker_mtbf_hours, set=overrides or (), seed=seed,
    )  # fmt: skip
    content = {
        "assumptions": assumptions.model_dump(mode="json"),
        "forecasts": [found._asdict() for found in forecasts],
    }
    show_result(content, as_json, lambda: _show(assumptions, forecasts))


def _whole(option: str, text: str) -> int:
    """A whole number, also as 1e10 or 10_000."""
    try:
        value = float(text)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise UsageError(f"{option} {text!r}: expected a whole number, for example 8 or 1e10")


def _show(assumptions: Assumptions, forecasts: list[Forecast]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "workers", "wall", "records/s", "efficiency", "cost", "lost work", "driver", "storage", "metadata",
        "bottleneck",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "bottleneck" else "right")
    for found in forecasts:
        busy = found.utilisation
        table.add_row(
            f"{found.workers:,}", _duration(found.wall_s), f"{found.records_per_s:,.0f}", f"{found.efficiency:.3f}",
            "-" if found.cost is None else f"{found.cost:,.2f}", f"{found.lost_worker_hours:,.2f} h",
            *(f"{busy[name]:.1%}" for name in ("driver", "storage", "metadata")), found.bottleneck,
        )  # fmt: skip
    head = forecasts[0]
    lines = [
        f"{head.units:,} units of {head.rows_per_unit:,} records, {assumptions.unit_s:.3g} s each; "
        f"{1e3 * assumptions.seconds_per_record:.4g} ms a record; drivers: {assumptions.drivers}"
    ]
    lines += [f"{_workers(found)}: {found.advice}" for found in forecasts]
    lines += [
        f"{_workers(found)}: {found.simulated_units:,} units were simulated, the others taken at the same rate"
        for found in forecasts
        if found.simulated_units < found.units
    ]
    show(table, *lines)


def _workers(found: Forecast) -> str:
    return f"{found.workers:,} worker" + "s" * (found.workers > 1)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    days, rest = divmod(round(seconds), 86_400)
    return (f"{days} d " if days else "") + str(datetime.timedelta(seconds=rest))
