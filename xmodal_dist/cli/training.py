"""Commands that train, look for a learning rate, and compare what was trained."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from xmodal_dist.cli.options import AsJson, Config, DataPath, NumWorkers, Overrides, say, show_result

__all__ = ["find_lr", "report", "train"]


def train(
    data: DataPath,
    output: Annotated[str, typer.Option("--output", help="Run directory to write.")] = "runs/train",
    config: Config = None,
    overrides: Overrides = None,
    num_workers: NumWorkers = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier on a packed dataset."""
    from xmodal_dist import api

    result = api.train(
        data, output, config=config, set=overrides or (), num_workers=num_workers, resume=resume
    )
    figures = _figures(
        result.metrics,
        "accuracy",
        "mean_average_precision",
        "micro_f1",
        "macro_f1",
        "loss",
        "calibrated_loss",
    )
    text = f"trained {result.metrics['epochs']} epochs, best {result.metrics['best_epoch']}; validation: {figures}"
    show_result(
        result._asdict(),
        as_json,
        lambda: say(f"{text}\nmodel:  {result.bundle}\nreport: {result.run}/report.html"),
    )


def find_lr(
    data: DataPath,
    output: Annotated[str, typer.Option("--output", help="Directory to write.")] = "runs/find-lr",
    config: Config = None,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(help="Steps of the sweep.")] = 100,
    lowest: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-5,
    highest: Annotated[float, typer.Option(help="Learning rate of the last step.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Look for a learning rate: some training steps at a rising one, in this process."""
    from xmodal_dist import api

    found = api.find_lr(
        data, output, config=config, set=overrides or (), steps=steps, lowest=lowest, highest=highest
    )
    text = f"lowest loss at {found.lowest_loss_at:.2g}; suggested: --set train.learning_rate={found.suggestion:g}"
    show_result(found._asdict(), as_json, lambda: say(f"{text}\nreport: {output}/report.html"))


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run directories.")],
    output: Annotated[
        str | None,
        typer.Option("--output", help="HTML file; default: RUN/report.html, or runs.html of several."),
    ] = None,
) -> None:
    """Write the page of a training run anew, or compare several on one page."""
    from xmodal_dist import api

    say(f"report: {api.report(runs, output)}")


def _figures(metrics: dict[str, Any], *names: str) -> str:
    return (
        ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics) or "none (no val split)"
    )
