"""The page of a sweep of the learning rate."""

from __future__ import annotations

from xmodal_dist.report.page import self_contained
from xmodal_dist.report.sweep import render

FOUND = {
    "suggestion": 0.001,
    "lowest_loss_at": 0.01,
    "diverged": True,
    "rates": [1e-4, 1e-3, 1e-2, 1e-1],
    "losses": [2.0, 1.5, 1.0, 90.0],
    "smoothed": [1.9, 1.5, 1.1, 50.0],
}


def test_page_is_self_contained_and_shows_the_suggestion() -> None:
    html = render("data/<a>", FOUND, {"train": {"batch_size": 64}})
    self_contained(html)
    assert '<span class="value">0.001</span><span class="note">train.learning_rate</span>' in html
    assert "ended by the loss" in html and "train.batch_size" in html and "data/&lt;a&gt;" in html


def test_an_explosion_at_the_end_does_not_press_the_rest_to_the_ground() -> None:
    html = render("data", FOUND, {})
    assert ">2.0<" in html, "ticks are text"
    assert not any(f">{tick}<" in html for tick in (10, 20, 40, 50, 80))
