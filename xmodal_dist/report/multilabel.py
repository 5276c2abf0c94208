"""What is shown of an evaluation of label sets: every class by itself, and no confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from xmodal_dist.report import plots
from xmodal_dist.report.page import Card, percent, score
from xmodal_dist.task import MULTILABEL

__all__ = ["cards", "chapter", "is_of_label_sets", "sentence"]

_MAX_CLASSES = 100


def is_of_label_sets(metrics: Mapping[str, Any]) -> bool:
    """Whether the content of a ``metrics.json`` is of a multilabel model."""
    return metrics.get("task") == MULTILABEL.name


def chapter(metrics: Mapping[str, Any], curves: Mapping[str, Any], title: str) -> dict[str, Any]:
    """What the macro ``results`` of ``_multilabel.html.j2`` shows of these only; ``curves`` may be {}."""
    classes = sorted(
        ({"name": name, **values} for name, values in metrics["per_class"].items()),
        key=lambda c: (c["average_precision"] is None, c["average_precision"]),
    )
    bins = curves.get("reliability")
    return {
        "classes": classes[:_MAX_CLASSES],
        "num_classes": len(classes),
        "reliability": _reliability(bins, curves["reliability_uncalibrated"], title) if bins else None,
        "num_errors": round(metrics["rows"] * (1 - metrics["subset_accuracy"])),
    }


def cards(metrics: Mapping[str, Any]) -> list[Card]:
    """The headline figures."""
    prior = metrics["prior"]
    return [
        Card(
            "Mean average precision",
            score(metrics["mean_average_precision"]),
            f"{score(prior['mean_average_precision'])} without looking",
        ),
        Card("Micro F1", score(metrics["micro_f1"]), f"macro {score(metrics['macro_f1'])}"),
        Card(
            "Whole set right",
            percent(metrics["subset_accuracy"]),
            f"of the records; {metrics['cardinality']:.2f} classes each",
        ),
        Card("Log loss", score(metrics["log_loss"]), f"{score(prior['log_loss'])} without looking"),
        Card("ECE", score(metrics["ece"], 4), "of all pairs of record and class"),
    ]


def sentence(metrics: Mapping[str, Any]) -> str:
    """The outcome in plain words."""
    found = score(metrics["mean_average_precision"])
    text = f"{found} is the mean average precision over {metrics['rows']:,} records"
    gain = metrics["fusion_gain"]
    if gain is None:
        return text + "."
    return (
        f"{text}: {score(abs(gain))} {'above' if gain >= 0 else 'below'} that of the best single field, "
        f"{metrics['best_single']}."
    )


def _reliability(bins: Mapping[str, Any], before: Mapping[str, Any] | None, title: str) -> Markup:
    """The probability of a class against how often it is there."""
    lines = [plots.Series("as it should be", [0.0, 1.0], [0.0, 1.0], faint=True)]
    if before is not None:
        lines.append(_line("before calibration", before, plots.ORANGE))
    lines.append(_line("as predicted" if before is None else "after calibration", bins, plots.BLUE))
    return plots.curves(
        f"{title}: reliability", lines, "probability of the class", percent=True, x_percent=True
    )


def _line(name: str, bins: Mapping[str, Any], color: str) -> plots.Series:
    filled = [b for b, rows in enumerate(bins["rows"]) if rows]
    x, y = ([bins[axis][b] for b in filled] for axis in ("confidence", "accuracy"))
    return plots.Series(name, x, y, color, markers=True)
