"""The report of a scoring run: rows in and out, what was predicted how surely and fast, and drift since training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from xmodal_dist.profile import MAJOR, MODERATE
from xmodal_dist.report import plots, strips
from xmodal_dist.report.page import Bar, Card, bars, flatten, number, percent, seconds
from xmodal_dist.report.page import render as render_page

__all__ = ["render"]

_Line = Mapping[str, Any]

_SHOWN_ELSEWHERE = frozenset({"label_counts", "confidence_counts", "present_counts", "quarantine", "profile"})
_FINGERPRINT_CHARS = 12
_MAX_BINS = 24
_MAX_SHIFTS = 30
_MAX_RATES = 240
_SECONDS_A_MINUTE = 60
_LEVELS = ("major", "moderate", "chance", "stable")
_INCIDENTS = {
    "resumed": "taken up again",
    "attempt_failed": "attempts at a unit that failed",
    "safe_mode": "units scored record by record in a process apart",
    "budget_exceeded": "stops for too many rejected records",
    "stopped": "commands that ended early",
}


class _Shift(NamedTuple):
    """A line of the drift table."""

    field: str
    measure: str
    psi: float
    chance: float
    level: str
    change: str
    figure: Markup


def render(
    manifest: Mapping[str, Any],
    *,
    events: Sequence[_Line] = (),
    drift: Sequence[_Line] | None = None,
    goodput: Mapping[str, Any] | None = None,
) -> str:
    """The page of one scoring run.

    Args:
        manifest: content of the run's manifest. ``label_counts``, ``confidence_counts``, ``present_counts`` and
            ``quarantine`` are shown as figures, everything else as a list; all of it may be absent.
        events: lines of the run's event log, by time, for throughput and for what went wrong.
        drift: rows of :func:`xmodal_dist.profile.drift`; None if the bundle has no profile to compare with.
        goodput: where the time of the last command went; None if it scored nothing.

    Returns:
        One self-contained HTML page. Rows that do not add up are shown as an error.
    """
    labels, quarantine = manifest.get("label_counts", {}), manifest.get("quarantine", {})
    confidence = manifest.get("confidence_counts", ())
    rows_scored, rows_quarantined = manifest.get("rows_ok", sum(labels.values())), sum(quarantine.values())
    rows_in = manifest.get("rows_in", rows_scored + rows_quarantined)
    shifts = None if drift is None else [_shift(row) for row in drift]
    happened = Counter(event["event"] for event in events)
    return render_page(
        "scoring",
        title="Batch scoring",
        run=_run(manifest),
        cards=[*_rows_cards(rows_in, rows_scored, rows_quarantined), *_other_cards(goodput, shifts)],
        rows_unaccounted=rows_in - rows_scored - rows_quarantined,
        labels=bars(_by_count(labels)),
        confidence=plots.histogram("Confidence", confidence, "probability of the predicted class")
        if any(confidence)
        else None,
        rows_scored=rows_scored,
        missing=_missing(manifest.get("present_counts", {}), rows_scored),
        quarantine=bars(_by_count(quarantine)),
        throughput=_throughput(events),
        incidents={words: number(happened[name]) for name, words in _INCIDENTS.items() if happened[name]},
        goodput=goodput,
        stages=_stages(goodput, "stages_s"),
        threads=_stages(goodput, "threads_s"),
        shifts=shifts,
        max_shifts=_MAX_SHIFTS,
        thresholds=(MODERATE, MAJOR),
        manifest=flatten({k: v for k, v in manifest.items() if k not in _SHOWN_ELSEWHERE}),
    )


def _run(manifest: Mapping[str, Any]) -> dict[str, str]:
    names = {"bundle": "bundle", "spec": "run", "input": "input"}
    return {
        shown: str(manifest[name])[:_FINGERPRINT_CHARS] for name, shown in names.items() if name in manifest
    }


def _by_count(counts: Mapping[str, int]) -> dict[str, float]:
    """Most frequent first; a row without a class is one that was abstained from."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {name or "none: abstained": rows for name, rows in ordered}


def _rows_cards(rows_in: int, rows_scored: int, rows_quarantined: int) -> list[Card]:
    def share(rows: int) -> str:
        return f"{percent(rows / rows_in, 2)} of the input" if rows_in else ""

    tone = "bad" if rows_quarantined else ""
    return [
        Card("Rows in", number(rows_in), "= scored + quarantined"),
        Card("Scored", number(rows_scored), share(rows_scored)),
        Card("Quarantined", number(rows_quarantined), share(rows_quarantined), tone),
    ]


def _other_cards(goodput: Mapping[str, Any] | None, shifts: Sequence[_Shift] | None) -> list[Card]:
    cards = []
    if goodput is not None and goodput["records"]:
        cost = f"{number(1000 * goodput['cpu_s_per_record'])} ms of CPU a record"
        cards.append(Card("Throughput", f"{number(goodput['records_per_s'])}/s", cost))
        busy = f"{number(goodput['cores'])} cores {percent(goodput['cores_busy'], 0)} busy"
        cards.append(Card("Wall time", seconds(goodput["wall_s"]), busy))
    if shifts:
        major, moderate = (sum(s.level == level for s in shifts) for level in ("major", "moderate"))
        note = f"major shifts, {moderate} moderate, of {len(shifts)} measures"
        cards.append(Card("Drift", number(major), note, "bad" if major else ""))
    return cards


def _missing(present: Mapping[str, int], rows: int) -> list[Bar]:
    """For each field the scored rows that lack it; bars are shares of all rows."""
    lacking = {name: rows - there for name, there in present.items()}
    shares = {name: lacks / rows if rows else 0.0 for name, lacks in lacking.items()}
    return [Bar(name, number(lacks), shares[name], shares[name]) for name, lacks in lacking.items()]


def _stages(goodput: Mapping[str, Any] | None, name: str) -> list[Bar]:
    stages = {} if goodput is None else goodput.get(name, {})
    return bars({stage.replace("_", " "): float(value) for stage, value in stages.items()}, unit="s")


def _shift(row: _Line) -> _Shift:
    """A row of drift as the table shows it; of many bins only the largest are drawn."""
    before, now = (np.asarray(row[name], dtype=np.float64) for name in ("before", "now"))
    rise = now - before
    most = int(np.lexsort((rise, np.abs(rise).round(9)))[-1])  # of equal changes the one upwards
    change = f"{row['bins'][most]}: {percent(before[most])} in training, {percent(now[most])} now"
    shown = np.sort(np.argsort(-(before + now), kind="stable")[:_MAX_BINS])
    return _Shift(
        row["field"] or "labels",
        row["measure"] if row["field"] else "predicted, against true ones in training",
        row["psi"],
        row["chance"],
        row["level"],
        change if row["psi"] > 0 else "",
        strips.shares(f"{row['field']} {row['measure']}", before[shown].tolist(), now[shown].tolist()),
    )


def _throughput(events: Sequence[_Line]) -> Markup | None:
    """Rows a second of all drivers together over the time at work; None where nothing was logged.

    An event tells how many rows were committed in the seconds before it. Time in which no driver was at work is left
    out, as between a stop and the next command.
    """
    counted = [e for e in events if e["event"] == "units_committed" and e["over_s"] > 0]
    if not counted:
        return None
    stop = np.array([datetime.fromisoformat(e["ts"]).timestamp() for e in counted])
    length = np.array([e["over_s"] for e in counted])
    rate = np.array([e["rows_ok"] + e["rows_bad"] for e in counted]) / length
    borders, place = np.unique(np.concatenate([stop - length, stop]), return_inverse=True)
    at_work, per_s = np.zeros(len(borders)), np.zeros(len(borders))
    for values, sign, places in ((rate, 1, place[: len(stop)]), (rate, -1, place[len(stop) :])):
        np.add.at(per_s, places, sign * values)
        np.add.at(at_work, places, sign)
    busy = np.cumsum(at_work)[:-1] > 0
    widths = np.diff(borders)[busy]
    ends = np.concatenate([[0.0], np.cumsum(widths)])
    done = np.concatenate([[0.0], np.cumsum(np.cumsum(per_s)[:-1][busy] * widths)])
    grid = np.linspace(0, ends[-1], min(_MAX_RATES, 2 * len(counted)) + 1)
    means = np.diff(np.interp(grid, ends, done)) / np.diff(grid)
    minutes = ((grid[:-1] + grid[1:]) / 2 / _SECONDS_A_MINUTE).tolist()
    return plots.curves(
        "Throughput",
        [plots.Series("rows/s", minutes, means.clip(0).tolist())],
        "minutes at work",
        from_zero=True,
    )
