"""The report of a search: what the trials reached, which settings mattered, and the best ones to copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from xmodal_dist.report import plots
from xmodal_dist.report.page import Bar, Card, flatten, number, percent, score
from xmodal_dist.report.page import render as render_page
from xmodal_dist.report.parallel import axis_of, parallel
from xmodal_dist.report.training import points
from xmodal_dist.settings import shown

__all__ = ["SearchedTrial", "render", "verdict"]

_LOWER_IS_BETTER = ("calibrated_loss", "loss", "parameters")
_SHARES = ("accuracy", "macro_f1", "mean_average_precision", "micro_f1", "subset_accuracy")
_MOST_AXES, _MOST_ROWS, _MOST_CURVES = 9, 100, 60


@dataclass(frozen=True)
class SearchedTrial:
    """A trial as it is on disk.

    Attributes:
        number: of the trial.
        record: its line in the table; {} of one under way.
        epochs: the lines of its ``metrics.jsonl`` with event ``epoch``.
    """

    number: int
    record: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]


def render(
    name: str,
    trials: Sequence[SearchedTrial],
    identity: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    importance: Mapping[str, float],
    best_yaml: str,
    test: Mapping[str, Any] | None,
) -> str:
    """The page of a search, under way or ended.

    Args:
        name: of the search, for the title.
        trials: those that have begun, by number.
        identity: content of ``search.json``.
        result: content of ``result.json``; None while the search goes on.
        importance: share of each setting, the largest first; {} where too little is known.
        best_yaml: the best trial's settings, to copy.
        test: figures of the test split; None if it has not been tested.

    Returns:
        One self-contained HTML page.
    """
    metric = identity["metrics"][0]
    sign = -1.0 if metric in _LOWER_IS_BETTER else 1.0
    scored = [t for t in trials if t.record.get("metrics") and t.record["state"] != "failed"]
    ranked = sorted(scored, key=lambda t: -sign * t.record["metrics"][metric])
    rest = [t for t in trials if t not in scored]
    best = result["best"]["trial"] if result else ranked[0].number if ranked else -1
    space = identity["search"]["space"]
    rows = [_row(trial, metric, best, result) for trial in [*ranked, *rest][:_MOST_ROWS]]
    longest = max(importance.values(), default=1.0)
    return render_page(
        "search",
        title="Hyperparameter search",
        run={"search": name},
        cards=_cards(metric, ranked, trials, result, test),
        metric=metric,
        is_share=metric in _SHARES,
        charts=_charts(trials, scored, metric, sign, best),
        coordinates=_coordinates(scored, space, importance, metric, sign),
        num_scored=len(scored),
        importance=[Bar(key, percent(value, 0), value, value / longest) for key, value in importance.items()],
        best_yaml=best_yaml,
        verdict=verdict(result) if result else "",
        choices=[c for c in result["choices"] if len(c["seeds"]) > 1] if result else [],
        rows=rows,
        num_trials=len(trials),
        names=list(space),
        settings=flatten(identity["search"]),
    )


def verdict(result: Mapping[str, Any]) -> str:
    """In a sentence, why the best by its figure was chosen or not; "" where the default settings are the best."""
    evidence = result.get("evidence")
    if evidence is None:
        return ""
    show = percent if result["metric"] in _SHARES else number
    ahead = (
        f"{show(evidence['gain'])} (standard error {show(evidence['error'])}) on the same validation records"
    )
    if evidence["is_better"]:
        return f"Trial {evidence['trial']} is better than the default settings beyond chance: by {ahead}."
    return f"Trial {evidence['trial']} is ahead by {ahead}, which may be chance: the default settings stay."


def _cards(
    metric: str,
    ranked: Sequence[SearchedTrial],
    trials: Sequence[SearchedTrial],
    result: Mapping[str, Any] | None,
    test: Mapping[str, Any] | None,
) -> list[Card]:
    show = percent if metric in _SHARES else score
    own = next((t.record["metrics"][metric] for t in ranked if t.number == 0), None)
    cards = []
    if test:
        note = f"macro F1 {score(test['macro_f1'])}, {test['rows']:,} rows, looked at once"
        name = next(n for n in ("accuracy", "mean_average_precision") if n in test)
        cards.append(Card(f"Test {name.replace('_', ' ')}", percent(test[name]), note))
    if ranked:
        reached = result["best"]["metrics"][metric] if result else ranked[0].record["metrics"][metric]
        note = f"{show(own)} with the default settings" if own is not None else ""
        cards.append(Card(f"Best validation {metric.replace('_', ' ')}", show(reached), note))
    states = [t.record.get("state", "running") for t in trials]
    counts = ", ".join(
        f"{states.count(s)} {s}" for s in ("finished", "stopped", "failed", "running") if s in states
    )
    cards.append(Card("Trials", number(len(trials)), counts, "bad" if not ranked and trials else ""))
    if result:
        share = result["epochs"] / max(1, result["epochs_asked"])
        cards.append(
            Card("Epochs", number(result["epochs"]), f"{percent(share, 0)} of training every trial fully")
        )
        cost = result["cost"]
        gpu = f"{number(cost['gpu_hours'])} GPU-hours, " if cost["gpu_hours"] else ""
        used = cost["cpu_hours_measured"]
        measured = f"{number(used)} of them used" if used is not None else "held by trials"
        cards.append(Card("Cost", f"{number(cost['cpu_hours'])} CPU-h", gpu + measured))
    return cards


def _charts(
    trials: Sequence[SearchedTrial], scored: Sequence[SearchedTrial], metric: str, sign: float, best: int
) -> list[tuple[str, Markup]]:
    """Title and figure of the history and of the learning curves, where there is data for them."""
    charts = []
    ended = sorted(scored, key=lambda t: t.record["ended_s"])
    if ended:
        values = [t.record["metrics"][metric] for t in ended]
        reached = [sign * max(sign * v for v in values[: i + 1]) for i in range(len(values))]
        at = list(range(1, len(values) + 1))
        dots = [plots.Series("trial", [x], [y], faint=True) for x, y in zip(at, values, strict=True)]
        lines = [*dots, plots.Series("best so far", at, reached, plots.ORANGE)]
        charts.append(("History", plots.curves("History", lines, "trials ended", percent=metric in _SHARES)))
    key = f"val_{metric}" if metric != "parameters" else "val_loss"
    curves = []
    for trial in sorted(trials, key=lambda t: t.number in (0, best))[-_MOST_CURVES:]:
        x, y = points(trial.epochs, "epoch", key)
        if x:
            names = {0: ("default", plots.ORANGE), best: (f"best: trial {best}", plots.BLUE)}
            label, colour = names.get(trial.number, ("trial", plots.MUTED))
            curves.append(plots.Series(label, x, y, colour, faint=trial.number not in names))
    if curves:
        title = f"Learning curves: validation {key[4:].replace('_', ' ')}"
        charts.append((title, plots.curves(title, curves, "epoch", percent=key[4:] in _SHARES)))
    return charts


def _coordinates(
    scored: Sequence[SearchedTrial],
    space: Mapping[str, Mapping[str, Any]],
    importance: Mapping[str, float],
    metric: str,
    sign: float,
) -> Markup | None:
    """The most important settings as axes, and the metric as the last one."""
    if len(scored) < 2:
        return None
    names = sorted(space, key=lambda name: -importance.get(name, 0.0))[:_MOST_AXES]
    plain = {n: {k: v for k, v in space[n].items() if v is not None} for n in names}
    axes = [axis_of(n, [t.record["values"].get(n) for t in scored], plain[n]) for n in names]
    values = [t.record["metrics"][metric] for t in scored]
    if max(values) > min(values):
        ends = {"uniform": (min(values), max(values))}
        axes.append(axis_of(f"validation.{metric}", values, ends))
    return parallel(axes, [sign * v for v in values], "Settings of every trial, coloured by what it reached")


def _row(trial: SearchedTrial, metric: str, best: int, result: Mapping[str, Any] | None) -> dict[str, Any]:
    record = trial.record
    notes = [("best", trial.number == best), ("default", trial.number == 0)]
    notes.append(("on the front", bool(result and trial.number in result["pareto"])))
    repeat = record.get("repeat_of")
    if repeat is not None:
        notes.append((f"seed {record['seed']} of trial {repeat}", True))
    return {
        "number": trial.number,
        "note": ", ".join(text for text, holds in notes if holds),
        "state": record.get("state", "running"),
        "reason": record.get("reason", ""),
        "message": (record.get("message") or "")[:200],
        "value": record.get("metrics", {}).get(metric) if record.get("state") != "failed" else None,
        "metrics": record.get("metrics", {}),
        "epochs": record.get("epochs", len(trial.epochs)),
        "wall_s": record.get("wall_s"),
        "values": {name: shown(value) for name, value in record.get("values", {}).items()},
    }
