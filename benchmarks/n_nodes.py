"""N, weak scaling over Ray nodes: 1, 2, 4 and 8 raylets, each with a worker that sleeps instead of computing.

Every node gets the same work whatever their number, so perfect scaling leaves the share of the time that is slept
as it is on one node. Scoring sleeps a second a unit (see ``s_scaling.py``), training a second a step, after which
the ranks wait for each other (``b3_simulated_gpu.py``). Sleeps are that long so that many nodes on few cores measure
what the nodes cost each other, waiting and hand-outs, and not how nine Ray runtimes share the cores.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace

from benchmarks.b3_simulated_gpu import utilisation
from benchmarks.harness import Figure, Options, Run, Side, figure_of, require, run_rounds
from benchmarks.jobs import training_side
from benchmarks.training_data import demo_dataset

__all__ = ["run"]

_NODES = (1, 2, 4, 8)
_UNITS_PER_NODE, _ROWS_PER_UNIT, _UNIT_S = 30, 100, 1.0
_ROWS_PER_STEP, _STEP_S = 16, 1.0
_GOAL = 0.93


def run(options: Options) -> list[Figure]:
    """Share of the time that is slept on so many nodes, over that on one."""
    options = replace(options, pairs=1)
    return [*_scoring(options), *_training(options)]


def _scoring(options: Options) -> list[Figure]:
    work = {"units_per_actor": _UNITS_PER_NODE, "rows_per_unit": _ROWS_PER_UNIT, "sleep_s": _UNIT_S}
    sides = [
        Side(
            f"scoring, {nodes} nodes", "benchmarks.ours.sleeping_actors", {**work, "actors": nodes, "nodes": nodes},
            sample_every_s=10.0,
        )
        for nodes in _NODES
    ]  # fmt: skip

    def check(side: Side, done: Run) -> None:
        require(not any(done.result[name] for name in ("lost", "duplicated", "failed_checks")), side.name)
        require(done.result["actors"] == side.request["nodes"], f"{side.name}: not every node worked")

    runs = run_rounds(sides, options, check)
    shares = {name: done.result["share"] for name, (done,) in runs.items()}
    return _figures(sides, runs, shares, _UNITS_PER_NODE * _ROWS_PER_UNIT)


def _training(options: Options) -> list[Figure]:
    dataset, rows = demo_dataset(options.cache, copies=1)
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            # As many epochs as nodes: so many times the records, and as many steps. Elastic workers take a whole CPU
            # each, which is a node.
            training_side(
                f"training, {nodes} nodes", dataset, folder, nodes, step=_STEP_S, source="real", nodes=nodes,
                train={"epochs": nodes, "batch_size": _ROWS_PER_STEP * nodes, "min_workers": nodes},
            )
            for nodes in _NODES
        ]  # fmt: skip

        def check(side: Side, done: Run) -> None:
            require(len(done.result["ranks"]) == side.request["nodes"], f"{side.name}: not every node worked")

        runs = run_rounds(sides, options, check)
    shares = {side.name: utilisation(runs[side.name][0], side.request["nodes"], _STEP_S) for side in sides}
    return _figures(sides, runs, shares, rows)


def _figures(
    sides: list[Side], runs: dict[str, list[Run]], shares: dict[str, float], rows_per_node: int
) -> list[Figure]:
    one = shares[sides[0].name]
    return [
        figure_of(
            f"n/{side.name}: weak scaling", (runs[side.name], "job"), [shares[side.name] / one], _GOAL,
            rows=rows_per_node * side.request["nodes"], unit="share", notes={"slept": round(shares[side.name], 4)},
        )
        for side in sides
    ]  # fmt: skip
