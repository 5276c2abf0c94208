"""The page of an explanation: what each modality contributes, and single records looked at closely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from xmodal_dist.report.evaluation import Example
from xmodal_dist.report.heat import Seen, overlay, words
from xmodal_dist.report.page import Card, number, percent
from xmodal_dist.report.page import render as render_page

__all__ = ["render"]

_MAX_CLASSES = 60
_METHODS = {
    "grad-cam": "Grad-CAM",
    "saliency": "input gradients, as nothing is convolved here",
}


def render(
    content: Mapping[str, Any],
    examples: Sequence[Example],
    views: Mapping[str, Mapping[str, Seen]],
    run: Mapping[str, str],
) -> str:
    """The page of one explanation.

    Args:
        content: content of ``explanation.json``.
        examples: the records of ``content["records"]``, in their order, with their fields as HTML.
        views: what the model sees of pictures and sounds, by id and field.
        run: what was explained, name -> value, for the header.

    Returns:
        One self-contained HTML page.
    """
    longest = max(
        (abs(v) for r in content["records"] for v in r["contributions"].values() if v is not None), default=0
    )
    pairs = zip(content["records"], examples, strict=True)
    return render_page(
        "explanation",
        title="Explanation",
        run=run,
        cards=_cards(content),
        content=content,
        methods=set(content["explained_by"].values()),
        summary=_summary(content),
        fields=_fields(content["fields"]),
        classes=_classes(content),
        num_classes=len(content["classes"]),
        columns=_columns(content["columns"]),
        records=[_record(record, example, views.get(record["id"], {}), longest) for record, example in pairs],
        num_wrong=sum(record["label"] != record["truth"] for record in content["records"]),
    )


def _cards(content: Mapping[str, Any]) -> list[Card]:
    rows, split = content["rows"], content["rows_split"]
    note = f"all of {content['split']}" if rows == split else f"of {number(split)} in {content['split']}"
    bad = content["rows_rejected"]
    if bad:
        note += f"; {number(bad)} could not be read"
    strongest = _by_strength(content["fields"])[0]
    return [
        Card("Rows", number(rows), note, "bad" if bad else ""),
        Card("Accuracy", percent(content["accuracy"]), "with all fields"),
        Card("Probability", percent(content["mean_probability"]), "of the predicted class, mean"),
        Card("Nothing shown", percent(content["mean_baseline"]), "the same classes without any field"),
        Card("Strongest field", strongest, f"{_points(_mean(content, strongest))} points a record"),
    ]


def _mean(content: Mapping[str, Any], field: str) -> float:
    mean: float = content["fields"][field]["all"]["mean_signed"]
    return mean


def _points(value: float | None) -> str:
    return number(None) if value is None else _signed(100 * value, 1, "+")


def _signed(value: float, digits: int, plus: str = "") -> str:
    """Fixed decimals; what rounds to 0 has no sign."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("\N{MINUS SIGN}" if value < 0 else plus) + text


def _by_strength(fields: Mapping[str, Any]) -> list[str]:
    return sorted(fields, key=lambda name: -fields[name]["all"]["mean_absolute"])


def _summary(content: Mapping[str, Any]) -> str:
    """The split in a sentence; the parts add up."""
    ranked = sorted(content["fields"], key=lambda name: -_mean(content, name))
    shares = ", ".join(f"{name} {_points(_mean(content, name))}" for name in ranked)
    return (
        f"Without any field the predicted classes would have {percent(content['mean_baseline'])} on average; with all "
        f"of them they have {percent(content['mean_probability'])}. Of the points between: {shares}."
    )


def _fields(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    longest = max((values["all"]["mean_absolute"] for values in fields.values()), default=0) or 1
    return [
        {
            "name": name,
            "rows_present": fields[name]["rows_present"],
            "width": fields[name]["all"]["mean_absolute"] / longest,
            "mean_absolute": _size(fields[name]["all"]["mean_absolute"]),
            "present": _size(fields[name]["mean_absolute_present"]),
            **{group: _points(fields[name][group]["mean_signed"]) for group in ("all", "right", "wrong")},
        }
        for name in _by_strength(fields)
    ]


def _size(value: float | None) -> str:
    return number(None) if value is None else f"{100 * value:.1f}"


def _classes(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each predicted class, most frequent first; cells are coloured by size and sign."""
    classes = sorted(content["classes"].items(), key=lambda item: (-item[1]["rows"], item[0]))
    longest = max((abs(v) for _, c in classes for v in c["mean_signed"].values()), default=0) or 1
    return [
        {
            "name": name,
            "rows": values["rows"],
            "cells": [
                {"text": _points(v), "tone": "for" if v >= 0 else "against", "share": abs(v) / longest}
                for v in (values["mean_signed"][field] for field in content["fields"])
            ],
        }
        for name, values in classes[:_MAX_CLASSES]
    ]


def _columns(columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Most needed first, by log loss, which moves where accuracy does not yet."""
    ranked = sorted(columns, key=lambda c: -(c["log_loss_rise"] or 0.0))
    longest = max((c["log_loss_rise"] or 0.0 for c in ranked), default=0.0)
    return [
        {
            **column,
            "width": max(column["log_loss_rise"] or 0.0, 0.0) / longest if longest > 0 else 0.0,
            "drop": _with_spread(column["accuracy_drop"], column["accuracy_drop_sd"], 100, 1),
            "rise": _with_spread(column["log_loss_rise"], column["log_loss_rise_sd"], 1, 4),
        }
        for column in ranked
    ]


def _with_spread(value: float | None, spread: float | None, factor: float, digits: int) -> str:
    if value is None:
        return number(None)
    text = _signed(factor * value, digits)
    return text if spread is None else f"{text} \N{PLUS-MINUS SIGN} {factor * spread:.{digits}f}"


def _record(
    record: Mapping[str, Any], example: Example, views: Mapping[str, Seen], longest: float
) -> dict[str, Any]:
    bars = [
        {
            "field": name,
            "text": "missing" if value is None else _points(value),
            "tone": "" if value is None else "for" if value >= 0 else "against",
            "width": abs(value or 0.0) / longest if longest else 0.0,
        }
        for name, value in record["contributions"].items()
    ]
    fragments = []
    for name, html in example.fragments.items():
        detail = record["fields"].get(name)
        if detail is not None:
            fragments.append({"field": name, **_fragment(detail, html, views.get(name))})
    return {
        "record": record,
        "bars": bars,
        "fragments": fragments,
        "right": record["label"] == record["truth"],
    }


def _fragment(detail: Mapping[str, Any], html: str | None, seen: Seen | None) -> dict[str, Any]:
    """A field of a card: ``kind`` of its presentation, its ``body``, and a ``note`` in small print."""
    if "columns" in detail:
        return {"kind": "table", "body": detail["columns"], "note": ""}
    if "words" in detail and detail["total"] is not None:
        added = sum(value or 0.0 for _, value in detail["words"])
        note = f"the words add up to {_points(added)} of {_points(detail['total'])} points, beside all other fields"
        return {"kind": "words", "body": words([(w, v) for w, v in detail["words"]]), "note": note}
    body = Markup(html or "")
    if "words" in detail:
        return {"kind": "plain", "body": body, "note": "its tokens cannot be attributed"}
    if detail["method"] is None:
        return {"kind": "plain", "body": body, "note": "no gradient reaches it"}
    if detail["map"] is None:
        return {"kind": "plain", "body": body, "note": "no part of it speaks for the predicted class"}
    drawn = "" if seen is None else overlay(seen, detail["map"])
    note = _METHODS[detail["method"]]
    if seen is not None and seen.upward:
        note += "; time to the right, frequency upwards"
    return {"kind": "media", "body": body + drawn, "note": note}
