"""Commands that say what a model is worth."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from xmodal_dist.cli.options import AsJson, BundlePath, DataPath, NumWorkers, number, show, show_result

__all__ = ["calibrate", "evaluate"]


def evaluate(
    bundle: BundlePath,
    data: DataPath,
    output: Annotated[
        str | None, typer.Option("--output", help="Directory to write; by default RUN/evaluation/SPLIT.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    num_workers: NumWorkers = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model: exact metrics, also for every subset of its modalities."""
    from xmodal_dist import api

    output = output or api.evaluation_path(bundle, split)
    metrics = api.evaluate(bundle, data, output, split=split, num_workers=num_workers)
    show_result(metrics, as_json, lambda: show(*_evaluation_tables(metrics), f"report: {output}/report.html"))


def calibrate(
    bundle: BundlePath,
    data: DataPath,
    split: Annotated[str, typer.Option(help="Split that the model was not trained on.")] = "val",
    output: Annotated[str | None, typer.Option("--output", help="A new bundle; default: in place.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a model's temperatures and abstention thresholds; training has done so where it had a val split."""
    from xmodal_dist import api

    found = api.calibrate(bundle, data, split=split, output=output)
    show_result(
        found,
        as_json,
        lambda: show(_calibration_table(found), f"bundle: {found['bundle']}, a new fingerprint"),
    )


def _evaluation_tables(metrics: dict[str, Any]) -> list[Table]:
    whole = Table(
        "rows", "accuracy", "balanced", "macro F1", "AUROC", "log loss", "ECE", box=None, pad_edge=False
    )
    names = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss", "ece")
    whole.add_row(str(metrics["rows"]), *(number(metrics[name]) for name in names))
    parts = Table(
        "modalities shown", "accuracy", "macro F1", "rows with all of them", box=None, pad_edge=False
    )
    for name, values in metrics["per_subset"].items():
        parts.add_row(
            name, number(values["accuracy"]), number(values["macro_f1"]), str(values["rows_present"])
        )
    return [whole, parts]


def _calibration_table(found: dict[str, Any]) -> Table:
    """Figures of the records that it was fitted to."""
    table = Table("fields", "rows", "temperature", "ECE before", "ECE after", box=None, pad_edge=False)
    for name, fit in {**found["subsets"], "as the records are": found["whole"]}.items():
        heat = "" if fit is found["whole"] else f"{fit['temperature']:.3f}"
        table.add_row(name, str(fit["rows"]), heat, number(fit["ece_before"]), number(fit["ece_after"]))
    return table
