"""The chapters on learning and speed, as the page of a run shows them."""

from __future__ import annotations

import math

from xmodal_dist.report.page import self_contained
from xmodal_dist.report.run import Run, render

GOODPUT = {
    "wall_s": 100.0,
    "stages_s": {
        "start_up": 10.0,
        "wait_for_data": 20.0,
        "forward": 20.0,
        "backward": 25.0,
        "optimizer": 5.0,
    },
    "records": 4800,
    "records_per_s": 48.0,
    "cpu_s_per_record": 0.002,
    "binding_stage": "The data binds: 20 % of the time the model waits for it.",
}
SETTINGS = {"train": {"epochs": 2, "note": "<b>"}, "model": {"fusion": {"kind": "gated"}}}


def _step(step, loss=1.0):
    return {
        "event": "step",
        "step": step,
        "epoch": step // 10,
        "loss": loss,
        "learning_rate": 1e-3,
        "records_per_s": 48.0,
        "time_s": float(step),
    }


def _epoch(epoch, accuracy, **extra):
    return {
        "event": "epoch",
        "epoch": epoch,
        "step": 10 * epoch + 10,
        "kept": epoch == 0,
        "train_loss": 0.5,
        "val_loss": 0.6,
        "val_accuracy": accuracy,
        "val_macro_f1": accuracy,
        "records": 2400,
        "time_s": 12.5,
        **extra,
    }


def _page(lines, goodput=GOODPUT, identity=None):
    return render(Run("runs/a", identity or {}, lines, goodput))


def test_page_is_self_contained_and_shows_the_run():
    lines = [*map(_step, range(1, 11)), _epoch(0, 0.75), *map(_step, range(11, 21)), _epoch(1, 0.7)]
    html = _page(lines, GOODPUT, SETTINGS)
    self_contained(html)
    assert html == _page(lines, GOODPUT, SETTINGS)
    for shown in (
        "Loss",
        "Learning rate",
        "Throughput",
        "Validation",
        "Where the time went",
        "Settings",
        "Environment",
    ):
        assert f">{shown}" in html
    assert '<span class="value">75.0 %</span><span class="note">of the best epoch, 0</span>' in html
    assert "Not evaluated yet" in html
    assert "The data binds: 20 % of the time the model waits for it." in html
    assert "50 % in forward, backward, optimizer" in html
    assert "model.fusion.kind" in html and "&lt;b&gt;" in html
    assert "20 steps" in html


def test_speed_is_shown_against_its_bound_where_it_was_measured():
    measured = {
        "share_of_bound": 0.934,
        "bound": {"records_per_s": 51.4, "limit": "cores"},
        "first_batch_s": 1.25,
        "epoch_gap_s": 0.125,
    }
    html = _page([_step(1), _epoch(0, 0.75)], GOODPUT | measured, {})
    assert '<span class="value">93 %</span><span class="note">of 51.4/s, set by the cores</span>' in html
    assert '<span class="value">125 ms</span><span class="note">first batch after 1.2 s</span>' in html
    without = _page([_step(1)], GOODPUT | {"share_of_bound": None, "first_batch_s": None}, {})
    assert "Share of the bound" not in without and "Gap between epochs" not in without


def test_time_that_no_stage_accounts_for_is_shown():
    html = _page([_step(1)], GOODPUT, {})
    assert "not measured" in html and "20.0 s" in html
    whole = GOODPUT | {"stages_s": {"forward": 100.0}}
    assert "not measured" not in _page([_step(1)], whole, {})


def test_repeated_steps_after_a_restart_count_once():
    lines = [_step(1), _step(2), _epoch(0, 0.5), _step(2), _epoch(0, 0.625)]
    html = _page(lines, GOODPUT, {})
    assert "2 steps" in html
    assert "62.5 %" in html and "50.0 %</td>" not in html


def test_loss_that_is_not_finite_is_told():
    html = _page([_step(1), _step(2, math.nan), _step(3, math.inf)], GOODPUT, {})
    assert "The loss was not finite at 2 steps" in html
    assert "not finite" not in _page([_step(1)], GOODPUT, {})


def test_run_that_ended_before_its_first_step():
    html = _page([], GOODPUT | {"records": 0, "wall_s": 0.0}, {})
    self_contained(html)
    assert "No step was logged." in html


def test_epoch_without_validation():
    html = _page([_step(1), _epoch(0, None, val_loss=None, val_macro_f1=None)], GOODPUT, {})
    assert ">Validation<" not in html and "–" in html
