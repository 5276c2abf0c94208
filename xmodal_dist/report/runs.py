"""Several training runs side by side: what they reached, how they learned, and in which settings they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from xmodal_dist.report import plots
from xmodal_dist.report.environment import FINGERPRINT_CHARS
from xmodal_dist.report.page import flatten
from xmodal_dist.report.page import render as render_page
from xmodal_dist.report.run import Run
from xmodal_dist.report.training import epochs_of, points, steps_of

__all__ = ["render"]

_MAX_DRAWN = len(plots.COLOURS)


def render(runs: Sequence[Run]) -> str:
    """The page that compares runs, best validation accuracy first.

    Args:
        runs: at least one.

    Returns:
        One self-contained HTML page.
    """
    ordered = sorted(runs, key=lambda run: -(run.best.get(run.headline.key) or 0.0))
    splits = list(dict.fromkeys(split for run in ordered for split in run.evaluations))
    return render_page(
        "runs",
        title="Runs compared",
        run={"runs": f"{len(ordered):,}"},
        cards=[],
        figure=_figure(ordered),
        rows=[_row(run, splits) for run in ordered],
        splits=splits,
        charts=_charts(ordered[:_MAX_DRAWN]),
        num_drawn=min(len(ordered), _MAX_DRAWN),
        num_datasets=len({run.identity.get("dataset") for run in ordered}),
        names=[run.name for run in ordered],
        differences=_differences(ordered),
    )


def _row(run: Run, splits: Sequence[str]) -> dict[str, Any]:
    best, figures = run.best, []
    for split in splits:
        metrics = run.evaluations.get(split, {})
        own = {name: metrics.get(name) for name in ("macro_f1", "ece")}
        figures.append(own | {"accuracy": metrics.get("accuracy", metrics.get("mean_average_precision"))})
    return {
        "name": run.name,
        "val_accuracy": best.get(run.headline.key),
        "val_macro_f1": best.get("val_macro_f1"),
        "val_loss": best.get("val_loss"),
        "epoch": best.get("epoch"),
        "epochs": len(epochs_of(run.lines)),
        "evaluations": figures,
        "wall_s": run.goodput.get("wall_s"),
        "records_per_s": run.goodput.get("records_per_s"),
    }


def _charts(runs: Sequence[Run]) -> list[tuple[str, Markup]]:
    """Title and figure of each chart that there is data for."""
    title = f"Validation {_figure(runs)}"
    charts: dict[tuple[str, str], list[plots.Series]] = {
        (title, "epoch"): [],
        ("Validation loss", "epoch"): [],
        ("Training loss, smoothed", "step"): [],
    }
    for run, colour in zip(runs, plots.COLOURS, strict=False):
        epochs = epochs_of(run.lines)
        for what, name in ((title, run.headline.key), ("Validation loss", "val_loss")):
            line = plots.Series(run.name, *points(epochs, "epoch", name), colour, markers=True)
            charts[what, "epoch"].append(line)
        step, loss = points(steps_of(run.lines), "step", "loss")
        charts["Training loss, smoothed", "step"].append(
            plots.Series(run.name, step, plots.smoothed(loss), colour)
        )
    return [
        (what, plots.curves(what, drawn, x_label, percent=what == title))
        for (what, x_label), series in charts.items()
        if (drawn := [line for line in series if line.x])
    ]


def _figure(runs: Sequence[Run]) -> str:
    """What the runs are known by."""
    return " or ".join(dict.fromkeys(run.headline.name for run in runs))


def _differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The settings that are not the same in all runs, with each run's value; a dash where a run has none."""
    flat = [flatten(run.identity) for run in runs]
    for values in flat:
        if "dataset" in values:
            values["dataset"] = values["dataset"][:FINGERPRINT_CHARS]
    names = sorted({name for values in flat for name in values})
    rows = [{"name": name, "values": [values.get(name, "\N{EN DASH}") for values in flat]} for name in names]
    return [row for row in rows if len(set(row["values"])) > 1]
