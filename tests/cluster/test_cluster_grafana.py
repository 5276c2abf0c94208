"""The Grafana dashboard shows every metric that the package exports, and none that it does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ray.util.metrics import Counter, Gauge, Histogram

from xmodal_dist.score.telemetry import DriverTelemetry, WorkerTelemetry
from xmodal_dist.train.telemetry import TrainTelemetry

REPOSITORY = Path(__file__).resolve().parents[2]
_SUFFIXES = {Counter: ("_total",), Gauge: ("",), Histogram: ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((REPOSITORY / "cluster" / "grafana" / "xmodal.json").read_text())
    return content


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_the_dashboard_shows_what_is_exported(dashboard: dict[str, Any]) -> None:
    shown = {name for e in _expressions(dashboard) for name in re.findall(r"\bray_xmodal_\w+", e)}
    exported = {
        metric.info["name"]: {f"ray_{metric.info['name']}{suffix}" for suffix in _SUFFIXES[type(metric)]}
        for telemetry in (DriverTelemetry(), WorkerTelemetry(), TrainTelemetry())
        for metric in vars(telemetry).values()
    }
    assert shown <= set().union(*exported.values()), "shown, but not exported"
    assert [name for name, series in exported.items() if not series & shown] == [], "exported, but not shown"


def test_the_labels_it_groups_by_exist(dashboard: dict[str, Any]) -> None:
    grouped = {
        label
        for expression in _expressions(dashboard)
        for labels in re.findall(r"by \(([^)]*)\)", expression)
        for label in labels.split(", ")
    }
    own = {label for m in vars(WorkerTelemetry()).values() for label in m.info["tag_keys"]}
    assert grouped <= own | {"JobId", "le"}  # those of Ray and of Prometheus


def test_panels_have_ids_and_places_of_their_own(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
