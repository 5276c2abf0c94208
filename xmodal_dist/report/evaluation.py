"""An evaluation as a chapter of a page, and as a page of its own; made of what lies on disk, without model or data.

``metrics.json`` has the figures; ``report.json`` what a page shows besides: the data of plots, the worst errors with
their fields as HTML, and what was evaluated where. An evaluation of an earlier release has no ``report.json``: its
chapter then lacks these parts and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from xmodal_dist.report import environment, multilabel, plots
from xmodal_dist.report.page import Card, percent, score
from xmodal_dist.report.page import render as render_page

__all__ = ["Example", "cards", "chapter", "render", "sentence", "split_title"]

_MAX_CLASSES = 60
_MAX_CONFUSIONS = 10
_SPLITS = {"val": "Validation", "test": "Test", "train": "Training"}


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


def render(metrics: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """The page of one evaluation.

    Args:
        metrics: content of ``metrics.json``.
        details: content of ``report.json``: ``split``, ``bundle``, ``dataset``, ``fingerprint`` (of the bundle),
            ``environment`` (:func:`xmodal_dist.environment.capture`), ``wall_s``, ``curves`` (those of
            :class:`xmodal_dist.evaluate.Evaluation`) and ``worst``: the most confident errors, each with the attributes
            of :class:`Example`.

    Returns:
        One self-contained HTML page.
    """
    found = chapter(details["split"], metrics, details)
    return render_page(
        "evaluation",
        title="Evaluation",
        lead=f"{found['title']} split. {found['sentence']}",
        run={name: details[name] for name in ("bundle", "dataset")},
        cards=cards(metrics),
        nav=[
            (found["anchor"], "Results"),
            (f"{found['anchor']}-classes", "Classes"),
            (f"{found['anchor']}-errors", "Errors"),
            ("environment", "Environment"),
        ],
        evaluation=found,
        environment=environment.facts_of_evaluation(details),
    )


def chapter(split: str, metrics: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
    """What the macro ``chapter`` of ``_evaluation.html.j2`` shows; ``details`` may be {}."""
    title, curves = split_title(split), details.get("curves", {})
    found = curves.get("precision_recall")
    common = {
        "anchor": f"split-{split}",
        "title": title,
        "sentence": sentence(metrics),
        "metrics": metrics,
        "all_fields": max(metrics["per_subset"], key=lambda name: name.count("+"), default=None),
        "ece_before": (metrics.get("uncalibrated") or {}).get("ece"),
        "worst": [_shown(Example(**item)) for item in details.get("worst", [])],
        "precision_recall": plots.precision_recall(found, f"{title}: precision against recall")
        if found
        else None,
        "has_details": bool(details),
        "label_sets": multilabel.is_of_label_sets(metrics),
    }
    if common["label_sets"]:
        return common | multilabel.chapter(metrics, curves, title)
    names, matrix = list(metrics["per_class"]), metrics["confusion_matrix"]
    classes = sorted(
        ({"name": name, **values} for name, values in metrics["per_class"].items()),
        key=lambda c: (c["f1"] is None, c["f1"] or 0.0),
    )
    return {
        **common,
        "confusion": plots.confusion(matrix, names, f"{title}: confusion matrix"),
        "confusions": _confusions(matrix, names),
        "classes": classes[:_MAX_CLASSES],
        "num_classes": len(classes),
        "withheld": _withheld(metrics, title),
        "abstention": metrics.get("abstention", []),
        **_figures(curves, title),
        "num_errors": metrics["rows"] - sum(row[i] for i, row in enumerate(matrix)),
    }


def cards(metrics: Mapping[str, Any]) -> list[Card]:
    """The headline figures."""
    if multilabel.is_of_label_sets(metrics):
        return multilabel.cards(metrics)
    raw = metrics.get("uncalibrated")
    before = f"{score(raw['ece'], 4)} before calibration" if raw else "calibration error"
    return [
        Card("Accuracy", percent(metrics["accuracy"]), f"balanced {percent(metrics['balanced_accuracy'])}"),
        Card("Macro F1", score(metrics["macro_f1"]), f"recall {score(metrics['macro_recall'])}"),
        Card("Average precision", score(metrics.get("average_precision"), 4), "one-vs-rest, macro"),
        Card("AUROC", score(metrics["auroc"], 4), "one-vs-rest, macro"),
        Card("Log loss", score(metrics["log_loss"]), "nats, lower is better"),
        Card("ECE", score(metrics["ece"], 4), before),
    ]


def split_title(split: str) -> str:
    """The name of a split for people."""
    return _SPLITS.get(split, split)


def sentence(metrics: Mapping[str, Any]) -> str:
    """The outcome in plain words."""
    if multilabel.is_of_label_sets(metrics):
        return multilabel.sentence(metrics)
    rows, gain = metrics["rows"], metrics["fusion_gain"]
    text = f"{percent(metrics['accuracy'])} of {rows:,} records are classified right"
    if gain is None:
        return text + "."
    points, best = abs(100 * gain), metrics["best_single"]
    if points < 0.05:
        return f"{text}; {best} alone does as well as all fields together."
    return f"{text}: {points:.1f} points {'more' if gain > 0 else 'fewer'} than with the best single field, {best}."


def _figures(curves: Mapping[str, Any], title: str) -> dict[str, Markup | None]:
    """The plots of ``curves`` that only multiclass has; None where there is no data for one."""
    bins, surest = curves.get("reliability"), curves.get("abstention")
    return {
        "reliability": plots.reliability(
            bins, curves["reliability_uncalibrated"], f"{title}: reliability diagram"
        )
        if bins
        else None,
        "surest": _precision(surest, title) if surest else None,
    }


def _withheld(metrics: Mapping[str, Any], title: str) -> Markup | None:
    """Accuracy against the share of fields withheld; None where that is not known, or there is but one field."""
    points = metrics.get("withheld")
    if not points or metrics["fusion_gain"] is None:
        return None
    line = plots.Series(
        "accuracy", [p["share"] for p in points], [p["accuracy"] for p in points], markers=True
    )
    return plots.curves(
        f"{title}: accuracy with fields withheld",
        [line],
        "share of the fields that is withheld",
        percent=True,
        x_percent=True,
    )


def _precision(curve: Mapping[str, Sequence[float]], title: str) -> Markup:
    """Precision against coverage, the surest records first."""
    line = plots.Series("precision", curve["coverage"], curve["precision"])
    return plots.curves(
        f"{title}: precision against coverage",
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


def _shown(example: Example) -> dict[str, Any]:
    fragments = {name: Markup(value) if value else None for name, value in example.fragments.items()}
    return {"example": example, "fragments": fragments}
