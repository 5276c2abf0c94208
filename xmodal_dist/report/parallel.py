"""Parallel coordinates as inline SVG: an upright axis for each setting, a line for each trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

__all__ = ["Axis", "axis_of", "parallel"]

_HEIGHT_PX, _TOP_PX, _BOTTOM_PX = 300, 40, 30
_GAP_PX, _MARGIN_PX = 132, 70
_INK, _MUTED, _LINE = "#1b2733", "#5c6b7a", "#c3ccd6"
_WORST, _BEST = (174, 189, 214), (217, 82, 13)
_MAX_LABEL = 15


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: below which it stands.
        ticks: position from 0 (bottom) to 1 -> text.
        places: of each trial, from 0 to 1; None where it has no value.
    """

    label: str
    ticks: Mapping[float, str]
    places: Sequence[float | None]


def axis_of(name: str, values: Sequence[Any], dimension: Mapping[str, Any]) -> Axis:
    """The axis of a setting.

    Args:
        name: for its label.
        values: of each trial; None where the setting was not searched.
        dimension: as in result.json; what lies outside is drawn at the edge.
    """
    if "choice" in dimension:
        choices = list(dimension["choice"])
        step = 1 / max(1, len(choices) - 1)
        ticks = {i * step: str(choice) for i, choice in enumerate(choices)}
        return Axis(name, ticks, [choices.index(v) * step if v in choices else None for v in values])
    low, high = next(dimension[kind] for kind in ("uniform", "loguniform", "integer") if kind in dimension)
    logarithm = "loguniform" in dimension

    def place(value: float) -> float:
        value = min(max(value, low), high)
        if logarithm:
            return math.log(value / low) / math.log(high / low)
        return float((value - low) / (high - low))

    middle = math.sqrt(low * high) if logarithm else (low + high) / 2
    ticks = {place(v): f"{v:.2g}" for v in (low, middle, high)}
    return Axis(name, ticks, [None if v is None else place(v) for v in values])


def parallel(axes: Sequence[Axis], scores: Sequence[float], title: str) -> Markup:
    """The figure.

    Args:
        axes: from left to right.
        scores: of each trial, more is better; the best is orange and on top.
        title: what it says, for those who cannot see it.
    """
    width = 2 * _MARGIN_PX + _GAP_PX * max(1, len(axes) - 1)
    height = _TOP_PX + _HEIGHT_PX + _BOTTOM_PX
    low, high = min(scores), max(scores)
    order = sorted(range(len(scores)), key=scores.__getitem__)
    parts = []
    for place, trial in enumerate(order):
        # Ranks, not values: a few failures would make all others look alike.
        rank = place / max(1, len(order) - 1) if high > low else 1.0
        points = [(_x(i), _y(p)) for i, axis in enumerate(axes) if (p := axis.places[trial]) is not None]
        path = " ".join(f"{x:.0f},{y:.1f}" for x, y in points)
        colour = "#" + "".join(
            f"{round(a + (b - a) * rank**2):02x}" for a, b in zip(_WORST, _BEST, strict=True)
        )
        thick = 3 if trial == order[-1] else 1.2
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thick}"/>')
    for i, axis in enumerate(axes):
        parts.append(_axis(_x(i), axis))
    return Markup(
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {height}" '
        f'style="min-width: {min(width, 760)}px; max-width: {width}px" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )


def _axis(x: float, axis: Axis) -> str:
    line = f'<line x1="{x}" y1="{_y(1)}" x2="{x}" y2="{_y(0)}" stroke="{_LINE}" stroke-width="1.5"/>'
    section, _, label = axis.label.rpartition(".")
    names = (
        f'<text x="{x}" y="14" text-anchor="middle" font-size="10" fill="{_MUTED}">{escape(section[-22:])}</text>'
        f'<text x="{x}" y="28" text-anchor="middle" font-size="12" fill="{_INK}">{escape(label)}</text>'
    )
    ticks = [
        f'<text x="{x + 5}" y="{_y(place) + 4:.1f}" font-size="10.5" fill="{_MUTED}" stroke="#fff" stroke-width="3" '
        f'paint-order="stroke">{escape(text[:_MAX_LABEL])}</text>'
        for place, text in axis.ticks.items()
    ]
    return line + names + "".join(ticks)


def _x(index: int) -> float:
    return _MARGIN_PX + index * _GAP_PX


def _y(place: float) -> float:
    return _TOP_PX + (1 - place) * _HEIGHT_PX
