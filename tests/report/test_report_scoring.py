"""The scoring page."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

from xmodal_dist.report.page import self_contained
from xmodal_dist.report.scoring import render

MANIFEST = {
    "bundle": "b3f1" * 16,
    "spec": "5bec" * 16,
    "rows_in": 1000,
    "rows_ok": 990,
    "rows_bad": 10,
    "label_counts": {"dog": 390, "cat": 600},
    "confidence_counts": [0, 0, 90, 900],
    "present_counts": {"picture": 990, "caption": 693},
    "quarantine": {"media_truncated": 7, "text_not_utf8": 3},
    "profile": {"rows": 990},
    "files": {"path": "_files-1.parquet", "rows": 12},
}
GOODPUT = {
    "wall_s": 12.5,
    "stages_s": {"wait_for_data": 9.0, "predict": 3.0, "other": 0.5},
    "threads_s": {"decode": 11.0},
    "records": 1000,
    "records_per_s": 80.0,
    "cpu_s_per_record": 0.021,
    "cores": 2,
    "cores_busy": 0.84,
    "num_workers": 1,
    "binding_stage": "decoding set the pace",
}


def _shift(measure: str, psi: float, level: str, field: str = "picture") -> dict[str, Any]:
    shares = {"before": [0.5, 0.4, 0.1], "now": [0.2, 0.6, 0.2]}
    bins = {"bins": ["up to 1", "above 1", "none"], "rows": 990}
    return {"field": field, "measure": measure, "psi": psi, "chance": 0.01, "level": level, **bins, **shares}


def _events(rates: list[tuple[float, int]], driver: str = "a", start_s: float = 0.0) -> list[dict[str, Any]]:
    """An event every 10 s from ``start_s`` on; pairs of how long that goes on, in minutes, and rows a second."""
    at = datetime(2025, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=start_s)
    found = []
    for minutes, per_s in rates:
        for _ in range(round(minutes * 6)):
            at += timedelta(seconds=10)
            counts = {"units": 1, "rows_ok": 10 * per_s, "rows_bad": 0, "over_s": 10.0}
            found.append({"ts": at.isoformat(), "event": "units_committed", "driver": driver, **counts})
    return found


def test_page_is_self_contained_and_rows_add_up() -> None:
    html = render(
        MANIFEST,
        events=[*_events([(2, 80)]), {"ts": "2025-01-01T00:00:05+00:00", "event": "resumed"}],
        drift=[_shift("label", 0.02, "stable", ""), _shift("brightness", 0.4, "major")],
        goodput=GOODPUT,
    )
    self_contained(html)
    for shown in ("1,000", "990", "99.00 % of the input", "media_truncated", "80/s", "12.5 s", "84 %"):
        assert shown in html
    assert "Rows do not add up" not in html and "Not known" not in html
    assert html.index("cat</td>") < html.index("dog</td>")
    assert "<th" in html and "taken up again" in html and "decoding set the pace" in html
    assert "profile" not in html.split("The run</summary>")[1]


def test_missing_modalities_are_shares_of_the_scored_rows() -> None:
    html = render(MANIFEST)
    row = re.search(r"caption</td>.*?</tr>", html, re.DOTALL)
    assert row is not None and ">297<" in row[0] and "30.0 %" in row[0]


def test_drift_has_a_colour_for_each_level_and_says_where() -> None:
    levels = {"stable": 0.01, "moderate": 0.2, "major": 0.9, "chance": 0.15}
    html = render(MANIFEST, drift=[_shift(name, psi, name) for name, psi in levels.items()])
    table = html.split("where most")[1]
    for level, psi in levels.items():
        assert f'<span class="chip {level}">{level}</span>' in table and f"{psi:.3f}" in table
    assert "up to 1: 50.0 % in training, 20.0 % now" in table
    assert "major shifts, 1 moderate, of 4 measures" in html


def test_many_measures_and_classes_are_folded_not_dropped() -> None:
    shifts = [_shift(f"column:c{i}", 1 - i / 100, "major") for i in range(90)]
    many = {"bins": [f"c{i}" for i in range(500)], "before": [1 / 500] * 500, "now": [0.0] * 499 + [1.0]}
    html = render({}, drift=[{**_shift("label", 1.0, "major", ""), **many}, *shifts])
    assert "61 more measures, none of which shifted further" in html
    assert all(f"column:c{i}<" in html for i in range(90))
    assert "c499: 0.2 % in training, 100.0 % now" in html


def _curve(html: str) -> tuple[list[float], float]:
    """Heights of the throughput line, in the figure's coordinates (y grows downwards), and the last label below it."""
    figure = html.split('aria-label="Throughput')[1].split("</svg>")[0]
    paths = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--c1\)', figure)
    labels = figure.split("minutes at work")[0]
    return [float(y) for y in re.findall(r"[ML] \S+ (\S+)", max(paths, key=len))], max(
        float(text) for text in re.findall(r">([\d.]+)</text>", labels)
    )


def test_throughput_adds_drivers_and_leaves_out_pauses() -> None:
    first = _events([(10, 50)], "a") + _events([(10, 50)], "b")
    later = _events([(10, 100)], "a", start_s=86_400)
    heights, end = _curve(render(MANIFEST, events=sorted(first + later, key=lambda e: e["ts"])))
    assert max(heights) - min(heights) < 1, "two drivers of 50 are one of 100"
    assert 15 <= end <= 20, "no gap of a day"
    heights, _ = _curve(render(MANIFEST, events=_events([(5, 100), (5, 10)])))
    assert heights[-1] - heights[0] > 50, "slower towards the end"


def test_rows_that_do_not_add_up_are_an_error() -> None:
    def page(scored: int, rejected: dict[str, int]) -> str:
        return render({"rows_in": 1000, "label_counts": {"cat": scored}, "quarantine": rejected})

    assert "8 rows of the input are neither scored nor quarantined" in page(992, {})
    assert "3 rows more came out than went in" in page(1000, {"media_truncated": 3})


def test_every_empty_state_is_said_in_words() -> None:
    html = render({"rows_in": 0}, drift=[])
    self_contained(html)
    for words in (
        "Empty: no row was rejected.",
        "No row was scored.",
        "nothing to compare",
        "the run has no event log",
        "Not measured",
        "Not counted",
    ):
        assert words in html
    assert "the bundle does not say what its training data looked like" in render({})


def test_many_classes_are_summed_not_dropped() -> None:
    html = render({"label_counts": {f"c{i:03d}": 10 for i in range(100)}})
    assert "60 more" in html and ">600<" in html


def test_names_are_escaped() -> None:
    hostile = "<script>alert(1)</script>"
    html = render(
        {"label_counts": {hostile: 1}, "present_counts": {hostile: 1}, "quarantine": {hostile: 1}},
        drift=[{**_shift(hostile, 0.5, "major", hostile), "bins": [hostile] * 3}],
    )
    assert "<script" not in html


def test_rows_without_a_class_are_called_abstained() -> None:
    assert "none: abstained" in render({"label_counts": {"": 5, "cat": 1}})
