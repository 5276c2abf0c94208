"""Figures as inline SVG text: the same input gives the same bytes, and no display is needed."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

__all__ = ["Series", "confusion", "curves", "histogram", "interval", "reliability", "shares", "smoothed"]

INK, MUTED, GRID, BLUE, ORANGE = "#1b2733", "#5c6b7a", "#e3e8ee", "#2457c5", "#d9730d"

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "xmodal-dist",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#c3ccd6",
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 7,
    "ytick.major.pad": 5,
    "legend.frameon": False,
}
_SVG_PARTS = re.compile(r'<svg [^>]*viewBox="([^"]*)"[^>]*>')
_SVG_NOISE = (
    re.compile(r' id="[A-Za-z0-9.]+_\d+"'),  # the same in every figure of a page, and nothing refers to them
    re.compile(r" font-family: [^;]*;"),
    re.compile(r"<style[^>]*>.*?</style>", re.DOTALL),  # would apply to the whole page
)
_PALE_INK = "#aab4bf"
_INTERVAL_WIDTH_PX, _INTERVAL_HEIGHT_PX = 150, 16
_STRIP_HEIGHT_PX, _PAIR_WIDTH_PX, _BAR_WIDTH_PX = 26, 11, 4
_MAX_POINTS = 800
_MAX_ANNOTATED_CLASSES = 20
_MAX_VECTOR_CLASSES = 40
_MAX_NAMED_CLASSES = 60


@dataclass(frozen=True)
class Series:
    """One line of a chart; ``faint`` draws it pale, behind, and without a legend entry."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = BLUE
    faint: bool = False
    markers: bool = False


def curves(
    title: str,
    series: Sequence[Series],
    x_label: str,
    percent: bool = False,
    from_zero: bool = False,
    x_percent: bool = False,
) -> Markup:
    """A line chart; long series are averaged down to a drawable number of points. ``percent`` is of the y axis."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(5.4, 2.7)
        for line in series:
            x, y = _thinned(line.x), _thinned(line.y)
            axes.plot(
                x,
                y,
                color=line.color,
                alpha=0.25 if line.faint else 1.0,
                linewidth=0.9 if line.faint else 1.7,
                marker="o" if line.markers or len(x) == 1 else "",
                markersize=3.5,
                label="_" if line.faint else line.name,
            )
        axes.set_xlabel(x_label)
        if from_zero:
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=not from_zero, steps=[1, 2, 2.5, 5, 10]))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if x_percent:
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if sum(not line.faint for line in series) > 1:
            axes.legend(loc="best")
        return _svg(figure, title)


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred running mean over about a twentieth of the series, so that a trend shows through noise."""
    window = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    start = np.maximum(np.arange(len(values)) - window // 2, 0)
    stop = np.minimum(start + window, len(values))
    return [float(mean) for mean in (sums[stop] - sums[start]) / (stop - start)]


def confusion(matrix: Sequence[Sequence[float]], class_names: Sequence[str]) -> Markup:
    """Heat map of a confusion matrix; colour grows with the root of the share of the true class.

    The root makes rare errors visible. Rows are written into the cells where the classes are few.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    num_classes = len(class_names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colors: dict[str, Any] = {"cmap": "Blues", "norm": PowerNorm(0.5, vmin=0, vmax=1)}
    side = float(np.clip(1.8 + 0.36 * num_classes, 4.4, 8.5))
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure, axes = _figure(side + 0.6, side)
        if num_classes <= _MAX_VECTOR_CLASSES:
            edges = np.arange(num_classes + 1) - 0.5
            axes.pcolormesh(edges, edges, share, edgecolor="white", **colors, linewidth=1)
        else:
            axes.imshow(share, interpolation="nearest", **colors, aspect="auto")
        axes.set_xlim(-0.5, num_classes - 0.5)
        axes.set_ylim(num_classes - 0.5, -0.5)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.spines[:].set_visible(False)
        named = range(num_classes) if num_classes <= _MAX_NAMED_CLASSES else range(0)
        short = [_shortened(class_names[i]) for i in named]
        crowded = max((len(name) for name in short), default=0) > 3
        axes.set_xticks(
            list(named), short, rotation=45 if crowded else 0, ha="right" if crowded else "center"
        )
        axes.set_yticks(list(named), short)
        if num_classes <= _MAX_ANNOTATED_CLASSES:
            _annotate(axes, counts, share)
        return _svg(figure, "Confusion matrix")


def reliability(
    bins: Mapping[str, Sequence[Any]], uncalibrated: Mapping[str, Sequence[Any]] | None = None
) -> Markup:
    """Reliability diagram: accuracy per bin of confidence, and below it how many rows each bin holds."""
    rows = np.asarray(bins["rows"], dtype=np.float64)
    num_bins = len(rows)
    centers = (np.arange(num_bins) + 0.5) / num_bins
    filled, confidence, accuracy = _filled(bins)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot(
            [0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated"
        )
        upper.bar(centers[filled], accuracy, width=0.9 / num_bins, color=BLUE, alpha=0.25)
        if uncalibrated is not None:
            raw = {"color": ORANGE, "marker": "o", "markersize": 3, "linewidth": 1.2, "alpha": 0.7}
            upper.plot(*_filled(uncalibrated)[1:], label="before calibration", **raw)
        name = "this model" if uncalibrated is None else "after calibration"
        upper.plot(confidence, accuracy, color=BLUE, marker="o", markersize=4, linewidth=1.5, label=name)
        upper.set_ylabel("accuracy")
        upper.set_ylim(0, 1.03)
        upper.legend(loc="upper left")
        lower.bar(centers, rows / max(rows.sum(), 1), width=0.9 / num_bins, color=MUTED, alpha=0.6)
        lower.set_ylabel("rows")
        lower.set_xlabel("confidence: probability of the predicted class")
        lower.set_xlim(0, 1)
        for axes in (upper, lower):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        lower.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return _svg(figure, "Reliability diagram")


def _filled(bins: Mapping[str, Sequence[Any]]) -> tuple[list[int], list[float], list[float]]:
    """The bins that hold rows, their confidence and their accuracy."""
    filled = [b for b, rows in enumerate(bins["rows"]) if rows]
    return filled, [bins["confidence"][b] for b in filled], [bins["accuracy"][b] for b in filled]


def histogram(title: str, counts: Sequence[int], x_label: str) -> Markup:
    """Bars of equal width over [0, 1]."""
    num_bins = len(counts)
    centers = (np.arange(num_bins) + 0.5) / num_bins
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(5.4, 2.7)
        axes.bar(centers, counts, width=0.92 / num_bins, color=BLUE)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(x_label)
        axes.set_ylabel("rows")
        return _svg(figure, title)


def shares(title: str, before: Sequence[float], now: Sequence[float]) -> Markup:
    """Two distributions over the same bins as a strip of pairs of bars, for a cell of a table; the first in grey."""
    tallest = max(*before, *now, 1e-9)
    bars = []
    for place, pair in enumerate(zip(before, now, strict=True)):
        for side, (share, color) in enumerate(zip(pair, (_PALE_INK, BLUE), strict=True)):
            height = round(_STRIP_HEIGHT_PX * share / tallest, 1)
            x, y = place * _PAIR_WIDTH_PX + side * _BAR_WIDTH_PX, round(_STRIP_HEIGHT_PX - height, 1)
            bars.append(f'<rect x="{x}" y="{y}" width="{_BAR_WIDTH_PX}" height="{height}" fill="{color}"/>')
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
        f'<rect x="{at - 1}" y="0" width="2" height="{_INTERVAL_HEIGHT_PX}" fill="{_PALE_INK}"/>'
        f'<rect x="{low}" y="{middle - 1}" width="{round(high - low, 1)}" height="2" fill="{BLUE}"/>'
        f'<circle cx="{dot}" cy="{middle}" r="3.5" fill="{BLUE}"/></svg>'
    )


def _figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.subplots()


def _annotate(axes: Axes, counts: np.ndarray[Any, Any], share: np.ndarray[Any, Any]) -> None:
    for i, j in zip(*np.nonzero(counts), strict=True):
        color = "white" if share[i, j] > 0.3 else INK
        axes.text(j, i, f"{counts[i, j]:,.0f}", ha="center", va="center", fontsize=8, color=color)


def _shortened(name: str, limit: int = 16) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of equal runs, at most ``_MAX_POINTS`` of them."""
    if len(values) <= _MAX_POINTS:
        return list(values)
    return [float(part.mean()) for part in np.array_split(np.asarray(values, dtype=np.float64), _MAX_POINTS)]


def _svg(figure: Figure, title: str) -> Markup:
    text = io.StringIO()
    with warnings.catch_warnings():
        # The page's reader draws the text with its own fonts; that ours lacks a sign only concerns its width.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    _, view_box, content = _SVG_PARTS.split(text.getvalue(), maxsplit=1)
    for noise in _SVG_NOISE:
        content = noise.sub("", content)
    width_px = figure.get_figwidth() * 96
    return Markup(
        f'<svg role="img" aria-label="{escape(title)}" viewBox="{view_box}" '
        f'style="max-width: {width_px:.0f}px" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{content}'
    )
