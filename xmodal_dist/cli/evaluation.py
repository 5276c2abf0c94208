"""Commands that say what a model is worth."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from xmodal_dist.cli.options import AsJson, BundlePath, DataPath, NumWorkers, number, show, show_result

__all__ = ["calibrate", "compare", "evaluate", "explain"]

_FIGURES = {
    "multiclass": (
        ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss", "ece"),
        ("accuracy", "macro_f1"),
    ),
    "multilabel": (
        ("mean_average_precision", "micro_f1", "macro_f1", "subset_accuracy", "auroc", "log_loss", "ece"),
        ("mean_average_precision", "micro_f1"),
    ),
}
_TITLES = {
    "mean_average_precision": "mAP",
    "balanced_accuracy": "balanced",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "ece": "ECE",
}


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
    page = api.run_page(bundle)
    places = [f"report: {output}/report.html", *([f"the run's page: {page}"] if page else [])]
    show_result(metrics, as_json, lambda: show(*_evaluation_tables(metrics), *places))


def compare(
    bundle: BundlePath,
    data: DataPath,
    output: Annotated[str, typer.Option("--output", help="Directory to write.")],
    split: Annotated[str, typer.Option(help="Split to compare on.")] = "test",
    baselines: Annotated[str, typer.Option(metavar="NAME,...", help="Classical models; none: all.")] = "",
    fields: Annotated[str, typer.Option(metavar="NAME,...", help="Fields to compare with; none: all.")] = "",
    max_rows: Annotated[int, typer.Option(min=1, help="Rows that classical models are fitted to.")] = 10_000,
    num_workers: NumWorkers = None,
    as_json: AsJson = False,
) -> None:
    """Compare a model with classical ones on the same rows, and say whether it wins."""
    from xmodal_dist import api
    from xmodal_dist.baselines.result import render_comparison

    found = api.compare(
        bundle,
        data,
        output,
        split=split,
        baselines=_names(baselines),
        fields=_names(fields),
        max_rows=max_rows,
        num_workers=num_workers,
    )
    show_result(found, as_json, lambda: show(*render_comparison(found), f"report: {output}/report.html"))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def explain(
    bundle: BundlePath,
    data: DataPath,
    output: Annotated[str, typer.Option("--output", help="Directory to write.")],
    split: Annotated[str, typer.Option(help="Split to explain.")] = "test",
    rows: Annotated[int, typer.Option(min=1, help="Records to look at closely, worst errors first.")] = 24,
    ids: Annotated[list[str] | None, typer.Option("--ids", help="Look at this one; may be repeated.")] = None,
    max_rows: Annotated[
        int, typer.Option("--max-rows", min=1, help="Most records to take means over.")
    ] = 2000,
    as_json: AsJson = False,
) -> None:
    """Explain predictions: what each modality contributes, and which places, words and columns matter."""
    from xmodal_dist import api

    found = api.explain(bundle, data, output, split=split, rows=rows, ids=ids or (), max_rows=max_rows)
    show_result(found, as_json, lambda: show(*_contributions(found), f"report: {output}/report.html"))


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
    names, short = _FIGURES[metrics.get("task", "multiclass")]
    whole = Table("rows", *map(_title, names), box=None, pad_edge=False)
    whole.add_row(str(metrics["rows"]), *(number(metrics[name]) for name in names))
    titles = ("modalities shown", *map(_title, short), "rows with all of them")
    parts = Table(*titles, box=None, pad_edge=False)
    for name, values in metrics["per_subset"].items():
        parts.add_row(name, *(number(values[figure]) for figure in short), str(values["rows_present"]))
    return [whole, parts]


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


def _contributions(found: dict[str, Any]) -> list[Any]:
    table = Table("field", "mean size", "mean", "when right", "when wrong", box=None, pad_edge=False)
    for name, values in found["fields"].items():
        signed = (values[group]["mean_signed"] for group in ("all", "right", "wrong"))
        table.add_row(name, number(values["all"]["mean_absolute"]), *map(number, signed))
    rows = f"{found['rows']} of {found['rows_split']} records; {found['rows_rejected']} could not be read"
    return [f"{rows}. Contributions to the probability of the predicted class:", table]


def _calibration_table(found: dict[str, Any]) -> Table:
    """Figures of the records that it was fitted to."""
    table = Table("fields", "rows", "temperature", "ECE before", "ECE after", box=None, pad_edge=False)
    for name, fit in {**found["subsets"], "as the records are": found["whole"]}.items():
        heat = "" if fit is found["whole"] else f"{fit['temperature']:.3f}"
        table.add_row(name, str(fit["rows"]), heat, number(fit["ece_before"]), number(fit["ece_after"]))
    return table
