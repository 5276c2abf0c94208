"""The report of a sweep of the learning rate: the loss at each rate, and the rate that follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xmodal_dist.report import plots
from xmodal_dist.report.page import Card, flatten, number
from xmodal_dist.report.page import render as render_page

__all__ = ["render"]


def render(dataset: str, found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The page of one sweep.

    Args:
        dataset: for the title.
        found: content of ``find_lr.json``: ``suggestion``, ``lowest_loss_at``, ``diverged``, and lists of equal length
            ``rates``, ``losses``, ``smoothed``.
        settings: the settings of the training, nested.

    Returns:
        One self-contained HTML page.
    """
    rates, smoothed = [math.log10(rate) for rate in found["rates"]], found["smoothed"]
    # What comes after the loss has exploded would press everything else to the ground.
    highest = 1.5 * max(smoothed[: smoothed.index(min(smoothed)) + 1])
    lowest = math.log10(found["lowest_loss_at"])
    figure = plots.curves(
        "Loss by learning rate",
        [
            plots.Series("each step", *_below(rates, found["losses"], highest), faint=True),
            plots.Series("smoothed", *_below(rates, smoothed, highest)),
            plots.Series("lowest", [lowest], [min(smoothed)], plots.ORANGE),
        ],
        "learning rate, power of ten",
    )
    return render_page(
        "sweep",
        title="Learning rate",
        run={"dataset": dataset},
        cards=[
            Card("Suggestion", f"{found['suggestion']:g}", "train.learning_rate"),
            Card("Lowest loss", number(min(smoothed)), f"at {found['lowest_loss_at']:.2g}"),
            Card(
                "Steps", number(len(rates)), "ended by the loss" if found["diverged"] else "all of the sweep"
            ),
        ],
        figure=figure,
        settings=flatten(settings),
    )


def _below(x: list[float], y: list[float], highest: float) -> tuple[list[float], list[float]]:
    kept = [i for i, value in enumerate(y) if value <= highest]
    return [x[i] for i in kept], [y[i] for i in kept]
