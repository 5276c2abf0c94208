"""Figures that fit into the cell of a table, as inline SVG text in the page's colours."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

__all__ = ["interval", "shares"]

_BEFORE, _NOW = "var(--pale-ink)", "var(--c1)"
_INTERVAL_WIDTH_PX, _INTERVAL_HEIGHT_PX = 150, 16
_STRIP_HEIGHT_PX, _PAIR_WIDTH_PX, _BAR_WIDTH_PX = 26, 11, 4


def shares(title: str, before: Sequence[float], now: Sequence[float]) -> Markup:
    """Two distributions over the same bins as a strip of pairs of bars, for a cell of a table; the first in grey."""
    tallest = max(*before, *now, 1e-9)
    bars = []
    for place, pair in enumerate(zip(before, now, strict=True)):
        for side, (share, color) in enumerate(zip(pair, (_BEFORE, _NOW), strict=True)):
            height = round(_STRIP_HEIGHT_PX * share / tallest, 1)
            x, y = place * _PAIR_WIDTH_PX + side * _BAR_WIDTH_PX, round(_STRIP_HEIGHT_PX - height, 1)
            bars.append(
                f'<rect x="{x}" y="{y}" width="{_BAR_WIDTH_PX}" height="{height}" style="fill: {color}"/>'
            )
    width = len(before) * _PAIR_WIDTH_PX
    return Markup(
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {_STRIP_HEIGHT_PX}" '
        f'style="width: {width}px" xmlns="http://www.w3.org/2000/svg">{"".join(bars)}</svg>'
    )


def interval(
    title: str, values: tuple[float, float, float], scale: tuple[float, float], mark: float
) -> Markup:
    """An interval as a line with a dot in it, for a cell of a table.

    Args:
        title: what it says, for those who cannot see it.
        values: lower end, estimate, upper end.
        scale: values at the left and right edge of the cell.
        mark: value of a grey mark across.
    """
    width, middle, margin = _INTERVAL_WIDTH_PX, _INTERVAL_HEIGHT_PX / 2, 4
    span = max(scale[1] - scale[0], 1e-9)
    low, dot, high, at = (
        round(margin + (width - 2 * margin) * (value - scale[0]) / span, 1) for value in (*values, mark)
    )
    return Markup(
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {_INTERVAL_HEIGHT_PX}" '
        f'style="width: {width}px" xmlns="http://www.w3.org/2000/svg">'
        f'<rect x="{at - 1}" y="0" width="2" height="{_INTERVAL_HEIGHT_PX}" style="fill: {_BEFORE}"/>'
        f'<rect x="{low}" y="{middle - 1}" width="{round(high - low, 1)}" height="2" style="fill: {_NOW}"/>'
        f'<circle cx="{dot}" cy="{middle}" r="3.5" style="fill: {_NOW}"/></svg>'
    )
