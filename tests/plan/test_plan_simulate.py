"""The simulation of a scoring run: every unit once whatever is lost, no faster than the work allows, as measured."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.plan.settings import Assumptions
from xmodal_dist.plan.simulate import Simulated, simulate

ROWS = 100.0
BOUNDED = settings(max_examples=40, deadline=None)

_losses = st.fixed_dictionaries(
    {
        "seconds_per_record": st.just(0.01),
        "unit_variation": st.sampled_from([0.0, 0.3, 1.5]),
        "worker_variation": st.sampled_from([0.0, 0.5]),
        "unit_failure_rate": st.sampled_from([0.0, 0.3]),
        "worker_mtbf_hours": st.sampled_from([None, 0.003, 0.01, 1.0]),
        "replacement_s": st.sampled_from([0.0, 7.0]),
        "workers_started_per_s": st.sampled_from([None, 0.5]),
        "drivers": st.integers(1, 3),
        "driver_s_per_unit": st.sampled_from([0.0, 0.01, 0.5]),
        "storage_requests_per_s": st.sampled_from([None, 20.0]),
        "storage_latency_s": st.sampled_from([0.0, 0.05]),
        "commit_s": st.sampled_from([0.0, 0.2]),
    }
)


@BOUNDED
@given(given_=_losses, units=st.integers(1, 300), workers=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_unit_is_done_once_and_no_time_is_won(
    given_: dict[str, float], units: int, workers: int, seed: int
) -> None:
    assumptions = Assumptions.model_validate(given_ | {"unit_rows": 100})
    found = simulate(assumptions, units, ROWS, workers, seed)
    assert found.done == b"\x01" * units and found.units == units
    assert (found.span_s - assumptions.start_s) * workers >= found.work_s + found.lost_s - 1e-6
    assert found.units_repeated or found.lost_s == 0
    may_lose = assumptions.worker_mtbf_hours is not None or assumptions.unit_failure_rate > 0
    assert may_lose or (found.units_repeated, found.workers_lost) == (0, 0)
    assert simulate(assumptions, units, ROWS, workers, seed) == found


@BOUNDED
@given(units=st.integers(1, 400), workers=st.integers(1, 30), more=st.integers(1, 30))
def test_more_workers_are_never_slower_where_nothing_else_limits(units: int, workers: int, more: int) -> None:
    ideal = Assumptions(
        seconds_per_record=0.01, unit_variation=0, start_s=0, driver_s_per_unit=0, driver_s_per_group=0,
        storage_requests_per_s=None,
    )  # fmt: skip
    few, many = (simulate(ideal, units, ROWS, number).span_s for number in (workers, workers + more))
    assert many <= few + 1e-6
    assert few == pytest.approx(-(-units // workers) * 1.0)


def _run(workers: int = 8, **given: float) -> Simulated:
    return simulate(Assumptions.model_validate({"seconds_per_record": 0.01, **given}), 800, ROWS, workers)


def test_a_driver_or_a_storage_that_is_overloaded_sets_the_pace() -> None:
    assert _run(driver_s_per_unit=0.5).span_s >= 400
    assert _run(driver_s_per_unit=0.5, drivers=4).span_s < 125
    assert _run(storage_requests_per_s=9).span_s >= 800
    assert _run(storage_bytes_per_s=1e4, input_bytes_per_record=100).span_s >= 800
    assert _run(storage_bytes_per_s=1e9, input_bytes_per_record=100).span_s < 125


def test_losses_cost_what_was_under_way() -> None:
    calm, stormy = _run(), _run(worker_mtbf_hours=0.02, replacement_s=10)
    assert stormy.workers_lost > 5 and stormy.span_s > calm.span_s
    assert stormy.lost_s < 2.0 * stormy.units_repeated


# Workers that sleep a second a unit instead of computing (benchmark S); the share of their time that is slept.
QUIET = {1: 0.99, 4: 0.99, 16: 0.99, 64: 0.93}
LOADED = {1: 0.966, 2: 0.950, 4: 0.948, 8: 0.931}


@pytest.mark.parametrize("measured", [QUIET, LOADED], ids=["quiet", "loaded"])
def test_scaling_is_as_measured(measured: dict[int, float]) -> None:
    """Calibrated on one worker alone, within 5 % on the others."""
    assumptions = Assumptions(
        seconds_per_record=0.01 / measured[1], unit_rows=100, unit_variation=0.01, start_s=0
    )
    for workers, share in measured.items():
        units = 30 * workers
        found = simulate(assumptions, units, ROWS, workers)
        assert units * 1.0 / (workers * found.span_s) == pytest.approx(share, rel=0.05)
