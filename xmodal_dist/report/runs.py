"""Several training runs side by side: what they reached, how they learned, and in which settings they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from xmodal_dist.report import plots
from xmodal_dist.report.page import flatten
from xmodal_dist.report.page import render as render_page
from xmodal_dist.report.training import epochs_of, points, steps_of

__all__ = ["Run", "render"]

_COLOURS = (
    "#2457c5", "#d9730d", "#1a7f4b", "#9c2fb0", "#b42318", "#0e7c86", "#8a6d00", "#5c6b7a",
)  # fmt: skip
_MAX_DRAWN = len(_COLOURS)


@dataclass(frozen=True)
class Run:
    """A run as it is on disk.

    Attributes:
        name: for people; distinct.
        identity: content of ``run.json``: dataset fingerprint and settings.
        lines: of ``metrics.jsonl``.
        goodput: content of ``goodput.json``; {} while the run goes on.
        evaluations: split -> content of its ``metrics.json``.
    """

    name: str
    identity: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    goodput: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def best(self) -> Mapping[str, Any]:
        """The epoch of the highest validation accuracy, else the last; {} before the first."""
        epochs = epochs_of(self.lines)
        validated = [line for line in epochs if line.get("val_accuracy") is not None]
        if validated:
            return max(validated, key=lambda line: float(line["val_accuracy"]))
        return epochs[-1] if epochs else {}


def render(runs: Sequence[Run]) -> str:
    """The page that compares runs, best validation accuracy first.

    Args:
        runs: at least one.

    Returns:
        One self-contained HTML page.
    """
    ordered = sorted(runs, key=lambda run: -(run.best.get("val_accuracy") or 0.0))
    splits = list(dict.fromkeys(split for run in ordered for split in run.evaluations))
    return render_page(
        "runs",
        title="Runs compared",
        run={"runs": f"{len(ordered):,}"},
        cards=[],
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
        figures.append({name: metrics.get(name) for name in ("accuracy", "macro_f1", "ece")})
    return {
        "name": run.name,
        "val_accuracy": best.get("val_accuracy"),
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
    charts: dict[tuple[str, str], list[plots.Series]] = {
        ("Validation accuracy", "epoch"): [],
        ("Validation loss", "epoch"): [],
        ("Training loss, smoothed", "step"): [],
    }
    for run, colour in zip(runs, _COLOURS, strict=False):
        epochs = epochs_of(run.lines)
        for title, name in (("Validation accuracy", "val_accuracy"), ("Validation loss", "val_loss")):
            line = plots.Series(run.name, *points(epochs, "epoch", name), colour, markers=True)
            charts[title, "epoch"].append(line)
        step, loss = points(steps_of(run.lines), "step", "loss")
        charts["Training loss, smoothed", "step"].append(
            plots.Series(run.name, step, plots.smoothed(loss), colour)
        )
    return [
        (title, plots.curves(title, drawn, x_label, percent=title == "Validation accuracy"))
        for (title, x_label), series in charts.items()
        if (drawn := [line for line in series if line.x])
    ]


def _differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The settings that are not the same in all runs, with each run's value; a dash where a run has none."""
    flat = [flatten(run.identity) for run in runs]
    names = sorted({name for values in flat for name in values})
    rows = [{"name": name, "values": [values.get(name, "\N{EN DASH}") for values in flat]} for name in names]
    return [row for row in rows if len(set(row["values"])) > 1]
