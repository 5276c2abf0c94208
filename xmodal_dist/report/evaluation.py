"""The report of an evaluation: confusions, calibration, what each modality contributes, worst errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from xmodal_dist.report import plots
from xmodal_dist.report.page import Card, number, percent, score
from xmodal_dist.report.page import render as render_page

__all__ = ["Example", "render", "sections"]

_MAX_CLASSES = 60
_MAX_CONFUSIONS = 10


@dataclass(frozen=True)
class Example:
    """A record to show.

    Attributes:
        id: the record's id.
        truth: true class.
        predicted: predicted class.
        probability: of the predicted class, in [0, 1].
        fragments: per field, its value as the modality's ``render`` gave it: HTML that is trusted and
            inserted as it is. None where the record lacks the field.
    """

    id: str
    truth: str
    predicted: str
    probability: float
    fragments: Mapping[str, str | None] = field(default_factory=dict)


def render(
    metrics: Mapping[str, Any],
    worst: Sequence[Example],
    curves: Mapping[str, Any],
    run: Mapping[str, str],
) -> str:
    """The page of one evaluation.

    Args:
        metrics: content of ``metrics.json``.
        worst: the most confident errors, worst first.
        curves: those of :class:`xmodal_dist.evaluate.Evaluation`.
        run: what was evaluated, name -> value, for the header: bundle, dataset, split.

    Returns:
        One self-contained HTML page.
    """
    num_errors = metrics["rows"] - sum(row[i] for i, row in enumerate(metrics["confusion_matrix"]))
    return render_page(
        "evaluation",
        title="Evaluation",
        run=run,
        cards=_cards(metrics),
        **sections(metrics),
        reliability=plots.reliability(curves["reliability"], curves["reliability_uncalibrated"]),
        ece=metrics["ece"],
        ece_before=(metrics["uncalibrated"] or {}).get("ece"),
        withheld=_withheld(metrics),
        precision=_precision(curves["abstention"]),
        abstention=metrics["abstention"],
        num_errors=num_errors,
        worst=[
            {
                "example": example,
                "fragments": {k: Markup(v) if v else None for k, v in example.fragments.items()},
            }
            for example in worst
        ],
    )


def sections(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What ``_evaluation.html.j2`` shows, from the content of ``metrics.json``; training reports share it."""
    classes = sorted(
        ({"name": name, **values} for name, values in metrics["per_class"].items()),
        key=lambda c: (c["f1"] is None, c["f1"] or 0.0),
    )
    names = list(metrics["per_class"])
    return {
        "confusion": plots.confusion(metrics["confusion_matrix"], names),
        "confusions": _confusions(metrics["confusion_matrix"], names),
        "classes": classes[:_MAX_CLASSES],
        "num_classes": len(classes),
        "subsets": metrics["per_subset"],
        "all_fields": max(metrics["per_subset"], key=lambda name: name.count("+"), default=None),
        "best_single": metrics["best_single"],
        "fusion_gain": metrics["fusion_gain"],
    }


def _cards(metrics: Mapping[str, Any]) -> list[Card]:
    return [
        Card("Rows", number(metrics["rows"]), f"{len(metrics['per_class']):,} classes"),
        Card("Accuracy", percent(metrics["accuracy"]), f"balanced {percent(metrics['balanced_accuracy'])}"),
        Card("Macro F1", score(metrics["macro_f1"]), f"recall {score(metrics['macro_recall'])}"),
        Card("AUROC", score(metrics["auroc"], 4), "one-vs-rest, macro"),
        Card("Log loss", score(metrics["log_loss"]), "nats, lower is better"),
        Card("ECE", score(metrics["ece"], 4), _before(metrics)),
    ]


def _before(metrics: Mapping[str, Any]) -> str:
    raw = metrics["uncalibrated"]
    return f"{score(raw['ece'], 4)} before calibration" if raw else "calibration error"


def _withheld(metrics: Mapping[str, Any]) -> Markup | None:
    """Accuracy against the share of fields withheld; None where that is not known, or there is but one field."""
    points = metrics["withheld"]
    if not points or metrics["fusion_gain"] is None:
        return None
    line = plots.Series(
        "accuracy", [p["share"] for p in points], [p["accuracy"] for p in points], markers=True
    )
    return plots.curves(
        "Accuracy with fields withheld",
        [line],
        "share of the fields that is withheld",
        percent=True,
        x_percent=True,
    )


def _precision(curve: Mapping[str, Sequence[float]]) -> Markup:
    """Precision against coverage, the surest records first."""
    line = plots.Series("precision", curve["coverage"], curve["precision"])
    return plots.curves(
        "Precision against coverage",
        [line],
        "share of the records that get a label",
        percent=True,
        x_percent=True,
    )


def _confusions(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent pairs of true and wrongly predicted class."""
    pairs: list[dict[str, Any]] = [
        {"truth": names[i], "predicted": names[j], "rows": rows, "share": rows / sum(row)}
        for i, row in enumerate(matrix)
        for j, rows in enumerate(row)
        if rows and i != j
    ]
    return sorted(pairs, key=lambda pair: -pair["rows"])[:_MAX_CONFUSIONS]
