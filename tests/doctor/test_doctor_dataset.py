"""The checks of a dataset with its settings: sound ones pass, and what would go wrong is told with the setting."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from xmodal_dist import config, runtime
from xmodal_dist.doctor.dataset import examine_dataset
from xmodal_dist.doctor.finding import Finding
from xmodal_dist.errors import UsageError

_CHECKS = {
    "row groups: bytes", "row groups: rows", "memory of training", "memory of scoring", "decode to compute",
    "time of training",
}  # fmt: skip


def _examine(dataset: str, *overrides: str, **more: Any) -> Mapping[str, Finding]:
    settings = config.load(None, overrides)
    sections = {name: getattr(settings, name) for name in ("fields", "model", "train", "pipeline", "score")}
    return {f.check: f for f in examine_dataset(dataset, **sections, **more)}


@pytest.fixture(scope="module")
def sound(tiny_dataset: str) -> Mapping[str, Finding]:
    return _examine(tiny_dataset, "train.epochs=3", price_per_hour=3600.0)


def test_a_small_dataset_with_the_defaults_is_sound(sound: Mapping[str, Finding]) -> None:
    assert set(sound) >= _CHECKS
    assert {f.check for f in sound.values() if f.level == "error"} == set()
    assert sound["row groups: rows"].level == sound["row groups: bytes"].level == "ok"


def test_time_follows_from_pace_and_its_price_from_time(sound: Mapping[str, Finding]) -> None:
    seen = sound["time of training"].seen
    minutes, epochs, records, pace, costs = (float(n) for n in re.findall(r"\d+(?:\.\d+)?", seen))
    assert epochs == 3
    # Validation is in the time, and not in the pace.
    assert epochs * records / pace <= costs <= 2 * epochs * records / pace + 0.01
    assert minutes == pytest.approx(costs / 60, abs=0.06)


def test_row_groups_that_lanes_must_share_are_told(tiny_source: Path, tmp_path: Path) -> None:
    from tests.conftest import TINY_FIELDS
    from xmodal_dist.dataset.schema import parse_field
    from xmodal_dist.ingest.pack import PackSettings, pack

    settings = PackSettings(rows_per_row_group=1000)
    pack(
        str(tiny_source), str(tmp_path / "d"), fields=[parse_field(f) for f in TINY_FIELDS], settings=settings
    )
    finding = _examine(str(tmp_path / "d"))["row groups: rows"]
    assert finding.level == "warning" and "pack.rows_per_row_group" in finding.advice


def test_row_groups_that_memory_does_not_hold_are_told(
    tiny_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "free_memory_bytes", lambda: 4096)
    finding = _examine(tiny_dataset)["row groups: bytes"]
    assert finding.level == "error" and "pack.row_group_bytes" in finding.advice


def test_settings_that_memory_does_not_hold_are_told(tiny_dataset: str) -> None:
    found = _examine(tiny_dataset, f"pipeline.prefetch_bytes={1 << 50}", f"score.unit_bytes={1 << 50}")
    assert found["memory of training"].level == found["memory of scoring"].level == "error"
    assert "pipeline.prefetch_bytes" in found["memory of training"].advice


def test_mistakes_are_those_of_training(tiny_dataset: str) -> None:
    with pytest.raises(UsageError, match="not a packed dataset"):
        _examine("nowhere")
    with pytest.raises(UsageError, match=re.escape("train.lanes")):
        _examine(tiny_dataset, "train.batch_size=13")
