"""S, scaling of scoring by simulation: 1, 4, 16 and 64 actors that sleep a second a unit instead of computing.

What is left is the driver's own work: plan, hand-out through Ray Data, commits, account. The figure is the share of the
sleepers' time that is slept, between the moment when the last of them begins and the moment when the first ends.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.harness import Figure, Options, Run, Side, figure_of, require, run_rounds

__all__ = ["run"]

_ACTORS = (1, 4, 16, 64)
_UNITS_PER_ACTOR = 30
_ROWS_PER_UNIT = 100
_SLEEP_S = 1.0
_GOAL = 0.95


def run(options: Options) -> list[Figure]:
    """Share of linear, for every number of actors."""
    sides = [
        Side(
            f"{actors} actors",
            "benchmarks.ours.sleeping_actors",
            {
                "actors": actors,
                "units_per_actor": _UNITS_PER_ACTOR,
                "rows_per_unit": _ROWS_PER_UNIT,
                "sleep_s": _SLEEP_S,
                "nodes": 0,
            },
            sample_every_s=10.0,
        )
        for actors in _ACTORS
    ]

    def check(side: Side, done: Run) -> None:
        found = {name: done.result[name] for name in ("lost", "duplicated", "failed_checks")}
        require(not any(found.values()), f"{side.name}: {found}")
        require(done.result["actors"] == side.request["actors"], f"{side.name}: not every actor worked")

    runs = run_rounds(sides, replace(options, pairs=1), check)
    return [
        figure_of(
            f"s/{side.name}: share of linear", (runs[side.name], "job"),
            [r.result["share"] for r in runs[side.name]], _GOAL,
            rows=side.request["actors"] * _UNITS_PER_ACTOR * _ROWS_PER_UNIT, unit="share",
        )
        for side in sides
    ]  # fmt: skip
