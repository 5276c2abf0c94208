"""Forecasts: as measured on one to eight workers, extrapolated as simulated whole, and advice that names the limit."""

from __future__ import annotations

import pytest

from xmodal_dist.errors import UsageError
from xmodal_dist.plan import forecast as room
from xmodal_dist.plan.forecast import Forecast, forecast
from xmodal_dist.plan.settings import Assumptions


def _of(records: int, workers: int, **given: float) -> Forecast:
    return forecast(Assumptions.model_validate({"seconds_per_record": 0.001, **given}), records, workers)


def test_a_slice_says_what_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"worker_mtbf_hours": 2.0, "unit_rows": 10_000, "price_per_worker_hour": 2.0}
    whole = _of(10**8, 16, **given)
    monkeypatch.setattr(room, "_slice_units", lambda assumptions, workers: 2_000)
    part = _of(10**8, 16, **given)
    assert (whole.simulated_units, part.simulated_units) == (10_000, 2_000)
    assert part.wall_s == pytest.approx(whole.wall_s, rel=0.01)
    assert part.cost == pytest.approx(2 * 16 * part.wall_s / 3600)
    assert part.lost_worker_hours == pytest.approx(whole.lost_worker_hours, rel=0.6)


def test_a_thousand_workers_score_ten_thousand_million_records() -> None:
    found = _of(10**10, 1000, unit_rows=2**17, worker_mtbf_hours=24.0, replacement_s=120.0)
    assert found.simulated_units == found.units == 76_294
    assert found.wall_s == pytest.approx(10_000, rel=0.1) and found.bottleneck == "workers"
    assert 50 < found.workers_lost < 200 and found.lost_worker_hours > 1


@pytest.mark.parametrize(
    ("bottleneck", "words", "records", "workers", "given"),
    [
        ("workers", "more workers help up to about", 10**8, 8, {}),
        ("driver", "set score.unit_rows=", 10**6, 100, {"unit_rows": 100}),
        ("storage", "set score.unit_rows=", 10**7, 100, {"unit_rows": 1000, "storage_requests_per_s": 100}),
        ("storage", "nearer storage", 10**7, 100, {"storage_bytes_per_s": 1e6}),
        ("metadata", "planning and listing take", 10**7, 8, {"unit_rows": 1000, "objects_listed_per_s": 2}),
        ("units", "take fewer workers", 10**6, 64, {}),
        ("start", "a cluster that is up", 10**7, 64, {"unit_rows": 1000, "start_s": 1000}),
    ],
)
def test_the_bottleneck_is_named_with_advice(
    bottleneck: str, words: str, records: int, workers: int, given: dict[str, float]
) -> None:
    found = _of(records, workers, **given)
    assert found.bottleneck == bottleneck and words in found.advice
    assert 0 < found.efficiency <= 1.05 and all(0 <= busy <= 1.001 for busy in found.utilisation.values())


def test_the_advice_on_the_driver_holds() -> None:
    before = _of(2 * 10**6, 100, unit_rows=100)
    rows = int(before.advice.split("score.unit_rows=")[1].split(",")[0])
    after = _of(2 * 10**6, 100, unit_rows=rows)
    assert after.bottleneck == "workers" and after.wall_s < before.wall_s


def test_larger_units_need_more_bytes_too() -> None:
    given = {"unit_rows": 100, "unit_bytes": 10_000, "input_bytes_per_record": 100.0}
    assert "score.unit_bytes=" in _of(10**6, 100, **given).advice
    assert "score.unit_bytes=" not in _of(10**6, 100, **given | {"unit_bytes": 10**9}).advice


@pytest.mark.parametrize(
    ("records", "workers", "given", "words"),
    [
        (0, 1, {}, "--records 0"),
        (10**14, 1, {}, "--records"),
        (10, 0, {}, "--workers 0"),
        (10, 10**6, {}, "--workers 1000000"),
        (10, 2, {"drivers": 3}, "drivers=3"),
    ],
)
def test_nonsense_is_refused(records: int, workers: int, given: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _of(records, workers, **given)
