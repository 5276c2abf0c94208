"""Commands that search hyperparameters."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from xmodal_dist.cli.options import AsJson, Config, Overrides, number, say, show, show_result
from xmodal_dist.errors import RunAgainError, UsageError
from xmodal_dist.settings import shown
from xmodal_dist.tune.settings import LOWER_IS_BETTER

__all__ = ["show_search", "tune"]

_MOST_ROWS = 40


def tune(
    context: typer.Context,
    data: Annotated[str | None, typer.Option("--data", help="A packed dataset with a val split.")] = None,
    output: Annotated[str, typer.Option("--output", help="Directory to write.")] = "runs/tune",
    config: Config = None,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many trials.")] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="No trial begins after so many minutes.")
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option(min=1, help="DDP workers of each trial; default 1.")
    ] = None,
    repeat_seeds: Annotated[
        int | None, typer.Option(min=1, help="Train the best with so many seeds, and choose by their mean.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search in --output.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search hyperparameters on the validation split; ends in a bundle that is tested once."""
    if context.invoked_subcommand is not None:
        return
    if data is None:
        raise UsageError("xmodal tune needs --data DATASET (or: xmodal tune show DIR)")
    from xmodal_dist import api

    try:
        api.tune(
            data, output, config=config, set=overrides or (), trials=trials, budget_minutes=budget_minutes,
            num_workers=num_workers, repeat_seeds=repeat_seeds, resume=resume,
        )  # fmt: skip
    except KeyboardInterrupt as error:
        raise RunAgainError("interrupted; the same command with --resume goes on") from error
    state = api.show_search(output)
    show_result(state, as_json, lambda: _show_end(state, output))


def show_search(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Directory of a search, ended or not.")],
    as_json: AsJson = False,
) -> None:
    """Show the table of a search, and write its report anew."""
    from xmodal_dist import api

    state = api.show_search(directory)
    show_result(state, as_json, lambda: _show_state(state, directory))


def _show_end(state: dict[str, Any], output: str) -> None:
    from xmodal_dist.report.search import verdict

    result, test = state["result"], state["test"]
    best, cost, name = result["best"], result["cost"], result["metric"]
    counts = ", ".join(f"{count} {state}" for state, count in result["trials"].items())
    say(f"{counts}; {result['epochs']} epochs of {result['epochs_asked']}, {_cost(cost)}")
    reached = f"validation {name} {best['metrics'][name]:.4f}, with the default settings {number(result['default'])}"
    say(f"best: trial {best['trial']}, {reached}")
    if why := verdict(result):
        say(f"  {why}")
    for setting, value in best["values"].items():
        say(f"  {setting}: {value}")
    if test:
        figures = ", ".join(f"{key} {value:.4f}" for key, value in test.items() if isinstance(value, float))
        say(f"test: {figures}")
    say(f"model:    {output}/bundle\nsettings: {output}/best.yaml\nreport:   {output}/report.html")


def _cost(cost: dict[str, Any]) -> str:
    gpus = f", {cost['gpu_hours']:.3g} GPU-hours" if cost["gpu_hours"] else ""
    return f"{cost['cpu_hours']:.3g} CPU-hours{gpus}"


def _show_state(state: dict[str, Any], directory: str) -> None:
    trials, name = state["trials"], state["metric"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("trial", "state", "reason", "epochs", name, "settings"):
        table.add_column(column, overflow="fold")
    sign = 1 if name in LOWER_IS_BETTER else -1
    ranked = sorted(trials, key=lambda t: (not t["metrics"], sign * t["metrics"].get(name, 0.0)))
    for trial in ranked[:_MOST_ROWS]:
        settings = " ".join(f"{key}={shown(value)}" for key, value in trial["values"].items())
        value = number(trial["metrics"].get(name))
        table.add_row(
            str(trial["trial"]), trial["state"], trial["reason"], str(trial["epochs"]), value, settings
        )
    left = (
        f"; {len(trials) - _MOST_ROWS} more in {directory}/trials.jsonl" if len(trials) > _MOST_ROWS else ""
    )
    running = ", ".join(map(str, state["running"])) or "none"
    show(table, f"ended: {len(trials)}; without an end: {running}{left}", f"report: {directory}/report.html")
    if state["result"]:
        _show_end(state, directory)
