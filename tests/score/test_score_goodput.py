"""The goodput of a scoring run: where its time went, and the one sentence about it."""

from __future__ import annotations

import json

import pytest

from xmodal_dist.score.goodput import goodput_line, scoring_goodput

STAGES = {"read": 2.0, "decode": 30.0, "wait_for_data": 20.0, "predict": 12.0, "commit": 1.0, "isolated": 2.0}


def test_figures_add_up() -> None:
    found = scoring_goodput(STAGES, wall_s=20.0, rows=4000, cpu_s=38.0, cores=2, num_workers=2)
    json.dumps(found)
    assert found["threads_s"] == {"read": 2.0, "decode": 30.0}
    assert list(found["stages_s"].items()) == [*list(STAGES.items())[2:], ("other", 5.0)]
    assert sum(found["stages_s"].values()) == pytest.approx(2 * 20.0)
    assert (found["records"], found["records_per_s"], found["cpu_s_per_record"]) == (4000, 200.0, 0.0095)
    assert found["cores_busy"] == pytest.approx(0.95)
    assert goodput_line(found) == (
        "scored 4,000 records in 20.0 s: 200/s, 9.5 ms of CPU a record, 2 cores 95% busy; decoding set the pace: add "
        "CPUs, set fields.NAME.decode=fast when training, or store media smaller "
        "(wait_for_data: 50% of the workers' time)"
    )


@pytest.mark.parametrize(
    ("longest", "words"),
    [
        ({"wait_for_data": 50.0, "read": 40.0}, "reading the input set the pace"),
        ({"wait_for_data": 50.0, "read": 0.0, "decode": 0.0}, "reading and decoding set the pace"),
        ({"predict": 50.0}, "the network set the pace"),
        ({"isolated": 50.0}, "records that kill their worker set the pace"),
        ({"commit": 50.0}, "committing set the pace"),
        ({"isolated": 50.0}, "records that kill their worker"),
    ],
)
def test_the_stage_that_took_the_loop_longest_is_named(longest: dict[str, float], words: str) -> None:
    found = scoring_goodput({**STAGES, **longest}, 50.0, 100, 50.0, 2)
    assert words in found["binding_stage"] and found["stages_s"]["other"] == 0


def test_a_short_run_is_start_up() -> None:
    found = scoring_goodput({"predict": 1.0, "something_new": 3.0}, 10.0, 10, 1.0, 4, num_workers=2)
    assert "start-up" in found["binding_stage"] and found["stages_s"]["other"] == 16.0
    assert list(found["stages_s"]) == ["predict", "something_new", "other"]
    assert (
        "something new took most" in scoring_goodput({"something_new": 9.0}, 10, 1, 1, 1, 1)["binding_stage"]
    )


def test_nothing_scored() -> None:
    found = scoring_goodput({}, 0.0, 0, 0.0, 2)
    assert goodput_line(found) == "scored 0 records in 0.0 s; nothing was scored"
