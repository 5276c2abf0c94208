"""Training as chapters of a page: how a run learned, how fast it was and where the time went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from xmodal_dist.dataset.order import WELL_MIXED
from xmodal_dist.report import plots
from xmodal_dist.report.page import Bar, Card, bars, number, percent, seconds

__all__ = ["Headline", "epochs_of", "headline", "learning", "points", "speed", "steps_of"]

_Line = Mapping[str, Any]

_USEFUL_STAGES = ("forward", "backward", "optimizer")


def learning(lines: Sequence[_Line]) -> dict[str, Any]:
    """What the macro ``learning`` of ``_training.html.j2`` shows.

    Args:
        lines: of ``metrics.jsonl``, with ``event`` "step" or "epoch". Of a step or epoch that was repeated after a
            restart the last line counts.
    """
    steps, epochs = steps_of(lines), epochs_of(lines)
    return {
        "charts": _charts(steps, epochs),
        "num_not_finite": sum(not _finite(line.get("loss")) for line in steps),
        "epochs": epochs,
        "headline": headline(lines),
    }


def speed(lines: Sequence[_Line], goodput: Mapping[str, Any]) -> dict[str, Any]:
    """What the macro ``speed`` of ``_training.html.j2`` shows.

    Args:
        lines: of ``metrics.jsonl``.
        goodput: content of ``goodput.json``.
    """
    steps, sentence = steps_of(lines), goodput.get("binding_stage", "")
    at, rate = points(steps, "step", "records_per_s")
    series = [
        plots.Series("each step", at, rate, faint=True),
        plots.Series("smoothed", at, plots.smoothed(rate)),
    ]
    return {
        "cards": _cards(steps, goodput),
        "binding_stage": sentence[:1].upper() + sentence[1:],
        "stages": _stages(goodput),
        "throughput": plots.curves("Throughput in records a second", series, "step") if at else None,
    }


class Headline(NamedTuple):
    """The validation figure that a run is known by: its key in an epoch's line, and its name."""

    key: str
    name: str


def headline(lines: Sequence[_Line]) -> Headline:
    """Accuracy; of a multilabel run mean average precision."""
    label_sets = any("val_mean_average_precision" in line for line in lines)
    return _MEAN_AP if label_sets else _ACCURACY


_ACCURACY = Headline("val_accuracy", "accuracy")
_MEAN_AP = Headline("val_mean_average_precision", "mean AP")


def steps_of(lines: Sequence[_Line]) -> list[_Line]:
    """The logged steps in order; of one that was repeated after a restart the last line."""
    return _last_of_each(lines, "step")


def epochs_of(lines: Sequence[_Line]) -> list[_Line]:
    """The epochs in order; of one that was repeated after a restart the last line."""
    return _last_of_each(lines, "epoch")


def _last_of_each(lines: Sequence[_Line], event: str) -> list[_Line]:
    latest = {line[event]: line for line in lines if line["event"] == event}
    return [latest[key] for key in sorted(latest)]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _cards(steps: Sequence[_Line], goodput: Mapping[str, Any]) -> list[Card]:
    stages = goodput["stages_s"]
    useful = sum(stages.get(name, 0.0) for name in _USEFUL_STAGES)
    cpu_s = goodput.get("cpu_s_per_record")
    num_steps = steps[-1]["step"] if steps else 0
    return [
        Card(
            "Wall time",
            seconds(goodput["wall_s"]),
            f"{percent(useful / max(goodput['wall_s'], 1e-9), 0)} in forward, backward, optimizer",
        ),
        Card(
            "Throughput",
            f"{number(goodput['records_per_s'])}/s",
            f"{number(cpu_s * 1000)} ms of CPU a record" if cpu_s is not None else "",
        ),
        Card("Records", number(goodput["records"]), f"read for training, in {num_steps:,} steps"),
        *_speed_cards(goodput),
    ]


def _speed_cards(goodput: Mapping[str, Any]) -> list[Card]:
    """How near the bound the run was, how long readers took, how well they mixed; what was not measured is left out."""
    cards = []
    if goodput.get("share_of_bound") is not None:
        bound = goodput["bound"]
        note = f"of {number(bound['records_per_s'])}/s, set by the {bound['limit']}"
        cards.append(Card("Share of the bound", percent(goodput["share_of_bound"], 0), note))
    if goodput.get("first_batch_s") is not None:
        note = f"first batch after {seconds(goodput['first_batch_s'])}"
        cards.append(Card("Gap between epochs", seconds(goodput["epoch_gap_s"]), note))
    if order := goodput.get("order"):
        mixing, note = (
            order["label_mixing"],
            f"label entropy of {order['batches']:,} batches against uniform draws",
        )
        cards.append(Card("Shuffle", percent(mixing, 0), note, tone="bad" if mixing < WELL_MIXED else ""))
    return cards


def _charts(steps: Sequence[_Line], epochs: Sequence[_Line]) -> list[tuple[str, Markup]]:
    """Title and figure of each chart that there is data for."""
    step, loss = points(steps, "step", "loss")
    charts = {
        ("Loss", "step"): [
            plots.Series("each step", step, loss, faint=True),
            plots.Series("training, smoothed", step, plots.smoothed(loss)),
            plots.Series("validation", *points(epochs, "step", "val_loss"), plots.ORANGE, markers=True),
        ],
        ("Validation", "epoch"): [
            plots.Series("accuracy", *points(epochs, "epoch", "val_accuracy"), markers=True),
            plots.Series("mean AP", *points(epochs, "epoch", "val_mean_average_precision"), markers=True),
            plots.Series("macro F1", *points(epochs, "epoch", "val_macro_f1"), plots.ORANGE, markers=True),
        ],
        ("Learning rate", "step"): [plots.Series("rate", *points(steps, "step", "learning_rate"))],
    }
    return [
        (title, plots.curves(title, drawn, x_label, percent=title == "Validation"))
        for (title, x_label), series in charts.items()
        if (drawn := [line for line in series if line.x])
    ]


def points(lines: Sequence[_Line], x: str, y: str) -> tuple[list[float], list[float]]:
    """Both values of the lines that have a finite ``y``."""
    kept = [line for line in lines if _finite(line.get(y))]
    return [line[x] for line in kept], [line[y] for line in kept]


def _stages(goodput: Mapping[str, Any]) -> list[Bar]:
    """Stages in the order of the loop, and the wall time that none of them accounts for."""
    stages = {name.replace("_", " "): float(value) for name, value in goodput["stages_s"].items() if value}
    unmeasured = goodput["wall_s"] - sum(stages.values())
    if unmeasured > 0.01 * goodput["wall_s"]:
        stages["not measured"] = unmeasured
    return bars(stages, unit="s")
