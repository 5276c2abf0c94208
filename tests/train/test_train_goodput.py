"""Where the time went: stages, phases, the bound, and kernels that run behind the loop."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_dist.train.goodput import epoch_figures, summarise
from xmodal_dist.train.stopwatch import Figures, RankTiming, Stopwatch


def _rank(total: Figures, steady: Figures, sampled: Figures | None = None) -> RankTiming:
    reading = Counter(rows_local=steady.records)
    return RankTiming(total, steady, Figures(), sampled or Figures(), reading, 0.5, 0.1, "host", 4, 1)


def _loop(watch: Stopwatch, steps: int, forward_s: float = 0.0) -> None:
    for _ in range(steps):
        with watch.stage("wait_for_data"):
            pass
        with watch.stage("forward"):
            time.sleep(forward_s)
        watch.step(8)


def _burn(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def test_the_stages_add_up_to_the_wall_time_and_the_longest_is_named() -> None:
    ranks = [
        _rank(Figures(seconds={"start_up": 2.0, "wait_for_data": w, "forward": 1.0}), Figures())
        for w in (5.0, 7.0)
    ]
    found = summarise(ranks, 10.0, 100, 5.0, 4)
    assert sum(found["stages_s"].values()) == pytest.approx(10.0)
    assert found["stages_s"]["wait_for_data"] == 6.0 and found["max_wait_for_data_s"] == 7.0
    assert found["binding_stage"].startswith("reading was the bottleneck: add CPUs")
    assert "wait_for_data: 60% of 10 s" in found["binding_stage"]
    assert found["records_per_s"] == 12.5 and found["cpu_s_per_record"] == 0.05
    assert found["share_of_bound"] is None and found["bound"]["records_per_s"] is None


def test_the_bound_on_cpus_is_what_the_cores_allow() -> None:
    """2 ranks, each 100 records in 2 s: 5 ms of reading and 5 ms of network a record, on 2 cores: at most 200/s."""
    seconds = {"checkpoint": 0.5, "forward": 1.0}
    steady = Figures(wall_s=2.5, records=100, seconds=seconds, cpu_s={"reading": 0.5, "forward": 0.5})
    found = summarise([_rank(Figures(), steady)] * 2, 10.0, 200, 2.0, 2)
    assert found["bound"]["limits"] == {"cores": 200.0, "loops": 400.0} and found["bound"]["limit"] == "cores"
    assert found["steady"]["records_per_s"] == 100.0 and found["share_of_bound"] == 0.5
    assert found["steady"]["loop_on_cpu"] == 0.5 and "50% of its bound" in found["binding_stage"]


def test_a_single_loop_that_leaves_cores_idle_is_told_to_take_more_workers() -> None:
    steady = Figures(wall_s=1.0, records=100, cpu_s={"reading": 0.1, "forward": 0.9})
    found = summarise([_rank(Figures(seconds={"forward": 0.9}), steady)], 1.0, 100, 1.0, 4)
    assert found["bound"]["limit"] == "loops" and found["share_of_bound"] == pytest.approx(0.9)
    assert "raise train.num_workers" in found["binding_stage"]


def test_the_bound_on_accelerators_is_the_readers_or_the_device() -> None:
    """A sampled step of 32 records takes the device 0.1 s; launches took the loop 1 ms; reading costs 1 ms a record."""
    sampled = Figures(steps=1, records=32, seconds={"forward": 0.06, "backward": 0.04})
    steady = Figures(wall_s=10.0, steps=90, records=90 * 32, cpu_s={"reading": 2.88})
    total = Figures(
        steps=100, seconds={"start_up": 1.0, "forward": 0.1, "backward": 0.1, "wait_for_data": 5.0}
    )
    found = summarise([_rank(total, steady, sampled)], 12.0, 3200, 5.0, 4)
    assert found["bound"]["limits"] == {"readers": 4000.0, "device": 320.0}
    assert found["share_of_bound"] == pytest.approx(0.9)
    stages = found["stages_s"]
    assert (stages["forward"], stages["backward"]) == (6.0, 4.0)
    assert stages["wait_for_data"] == 1.0, "the rest of the wait was hidden behind the device"
    assert sum(stages.values()) == pytest.approx(12.0)


def test_a_device_that_works_behind_the_loop_is_timed_in_samples() -> None:
    """The device gets 2 ms of work a step; launching takes no time, and waiting for it only happens when sampled."""
    free_at_s = time.perf_counter()

    def launch(work_s: float) -> None:
        nonlocal free_at_s
        free_at_s = max(free_at_s, time.perf_counter()) + work_s

    def synchronise() -> None:
        time.sleep(max(0.0, free_at_s - time.perf_counter()))

    watch = Stopwatch(synchronise)
    watch.ready(0.0, again=False)
    watch.begin("train")
    for _ in range(120):
        with watch.stage("forward"):
            launch(0.002)
        watch.step(8)
    sampled = watch.timing().sampled
    assert (sampled.steps, sampled.records) == (3, 24)
    assert 0.006 <= sampled.seconds["forward"] < 0.05
    assert watch.timing().total.seconds["forward"] < 0.25, "steps between the samples do not wait"


def test_steady_leaves_out_start_up_the_first_step_and_evaluation() -> None:
    watch = Stopwatch()
    watch.ready(5.0, again=False)
    watch.begin("train")
    _loop(watch, 1, 0.05)
    _loop(watch, 4)
    watch.begin("val")
    with watch.stage("evaluation"):
        time.sleep(0.05)
    whole, training = watch.epoch()
    assert (whole.steps, whole.records, training.records) == (5, 40, 40)
    assert whole.wall_s >= 0.1 and 0.05 <= training.wall_s < whole.wall_s - 0.05
    watch.begin("train")
    _loop(watch, 3)
    whole, training = watch.epoch()
    assert (whole.steps, training.records) == (3, 24)
    timing = watch.timing()
    assert (timing.total.steps, timing.steady.steps, timing.steady.records) == (8, 7, 56)
    assert timing.steady.wall_s <= timing.total.wall_s - 0.1 and timing.total.seconds["start_up"] >= 5.0


def test_the_first_batch_and_the_longest_wait_at_a_border_are_kept() -> None:
    watch = Stopwatch()
    for phase, waits_s in (("train", (0.02, 0.0, 0.3)), ("val", (0.03, 0.0)), ("train", (0.0,))):
        watch.begin(phase)
        for wait_s in waits_s:
            with watch.stage("wait_for_data"):
                time.sleep(wait_s)
    timing = watch.timing()
    assert timing.first_batch_s is not None and 0.02 <= timing.first_batch_s < 0.3
    assert 0.03 <= timing.epoch_gap_s < 0.3


def test_time_before_the_loop_is_start_up_or_lost_to_restarts() -> None:
    for again in (False, True):
        watch = Stopwatch()
        watch.ready(3.0, again)
        seconds = watch.timing().total.seconds
        assert (seconds.get("restarts", 0.0) == 3.0) is again and (seconds["start_up"] >= 3.0) is not again


def test_cpu_time_of_a_stage_is_that_of_the_loop_alone() -> None:
    watch = Stopwatch()
    with watch.stage("forward"):
        _burn(0.02)
        time.sleep(0.05)
    assert 0.02 <= watch.now.cpu_s["forward"] < 0.05 <= watch.now.seconds["forward"]


def test_a_stage_that_raises_is_counted() -> None:
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.stage("forward"):
        raise KeyError
    assert 0 < watch.now.seconds["forward"] <= watch.wall_s()


def test_an_epoch_has_the_rate_of_all_ranks_and_the_wait_of_the_slowest() -> None:
    def rank(wait_s: float) -> tuple[Figures, Figures]:
        whole = Figures(4.0, 10, 80, {"wait_for_data": wait_s, "evaluation": 2.0})
        return whole, Figures(2.0, 10, 80, {"wait_for_data": wait_s})

    found = epoch_figures([rank(0.5), rank(1.5)])
    assert found["records_per_s"] == 80.0 and found["wait_for_data_s"] == 1.5 and found["wall_s"] == 4.0
    assert found["stages_s"] == {"wait_for_data": 1.0, "evaluation": 2.0, "other": 1.0}


_figures = st.builds(
    Figures,
    wall_s=st.integers(0, 100).map(float),
    steps=st.integers(0, 9),
    records=st.integers(0, 99),
    seconds=st.dictionaries(st.sampled_from(["forward", "backward"]), st.integers(0, 50).map(float)),
    cpu_s=st.dictionaries(st.sampled_from(["reading"]), st.integers(0, 50).map(float)),
)


@given(a=_figures, b=_figures)
def test_figures_add_and_subtract_by_stage(a: Figures, b: Figures) -> None:
    back = (a + b) - b
    assert (back.wall_s, back.steps, back.records) == (a.wall_s, a.steps, a.records)
    for name in ("forward", "backward"):
        assert back.seconds.get(name, 0.0) == defaultdict(float, a.seconds)[name]
