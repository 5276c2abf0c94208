"""Figures as inline SVG text: the same input gives the same bytes, and no display is needed.

Colours become the page's CSS variables, so a figure is dark where the page is. What a figure shows stands in its label
too, for those who cannot see it.
"""

from __future__ import annotations

import hashlib
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
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

__all__ = [
    "COLOURS",
    "Series",
    "confusion",
    "curves",
    "histogram",
    "precision_recall",
    "reliability",
    "smoothed",
]

INK, MUTED, GRID, PALE = "#1b2733", "#5c6b7a", "#e3e8ee", "#aab4bf"
COLOURS = (
    "#2457c5", "#d9730d", "#1a7f4b", "#9c2fb0", "#b42318", "#0e7c86", "#8a6d00", "#667789",
)  # fmt: skip
"""Of lines that are told apart; each has a dash of its own too."""
BLUE, ORANGE = COLOURS[:2]
_HEAT = "#2457c6"

_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PALE: "pale-ink", _HEAT: "heat"} | {
    colour: f"c{place}" for place, colour in enumerate(COLOURS, 1)
}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)))

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "xmodal-dist",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "legend.labelcolor": INK,
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
    re.compile(
        r' id="([A-Za-z0-9.]+_\d+|image[0-9a-f]+)"'
    ),  # the same in every figure; nothing refers to them
    re.compile(r" font-family: [^;]*;"),
    re.compile(r"<style[^>]*>.*?</style>", re.DOTALL),  # would apply to the whole page
)
_SVG_NAMES = re.compile(r'(id="|#)([a-z][0-9a-f]{10})\b')
_SVG_COLOURS = re.compile("|".join(_VARIABLES))
_MAX_SCALE = 1.2
_MIN_SCALE = 0.6
_MAX_POINTS = 800
_MAX_ANNOTATED_CLASSES = 20
_MAX_VECTOR_CLASSES = 40
_MAX_NAMED_CLASSES = 60
_MAX_COLOURED_CLASSES = 5


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
        figure, axes = _figure(4.5, 2.5)
        for line in series:
            x, y = _thinned(line.x), _thinned(line.y)
            axes.plot(
                x,
                y,
                color=line.color,
                alpha=0.25 if line.faint else 1.0,
                linewidth=0.9 if line.faint else 1.7,
                linestyle="-" if line.faint else _dash(line.color),
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
            axes.yaxis.set_major_formatter(_percent())
        if x_percent:
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.xaxis.set_major_formatter(_percent())
        if sum(not line.faint for line in series) > 1:
            axes.legend(loc="best")
        return _svg(figure, _told(title, series, percent))


def _dash(color: str) -> Any:
    """So that lines can be told apart without their colours."""
    return _DASHES[COLOURS.index(color) % len(_DASHES)]


def _told(title: str, series: Sequence[Series], percent: bool) -> str:
    """The chart in words: where each line begins and ends."""
    unit, factor = (" %", 100) if percent else ("", 1)
    lines = (
        f"{line.name} from {factor * line.y[0]:.3g}{unit} to {factor * line.y[-1]:.3g}{unit}"
        for line in series
        if not line.faint and len(line.y)
    )
    return f"{title}: {'; '.join(lines)}"


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred running mean over about a twentieth of the series, so that a trend shows through noise."""
    window = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    start = np.maximum(np.arange(len(values)) - window // 2, 0)
    stop = np.minimum(start + window, len(values))
    return [float(mean) for mean in (sums[stop] - sums[start]) / (stop - start)]


def confusion(
    matrix: Sequence[Sequence[float]], class_names: Sequence[str], title: str = "Confusion matrix"
) -> Markup:
    """Heat map of a confusion matrix; colour grows with the root of the share of the true class.

    The root makes rare errors visible. Rows are written into the cells where the classes are few.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    num_classes = len(class_names)
    strength = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    side = float(np.clip(1.4 + 0.34 * num_classes, 3.2, 8.5))
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure, axes = _figure(side + 0.5, side)
        if num_classes <= _MAX_VECTOR_CLASSES:
            for i, j in zip(*np.nonzero(counts), strict=True):
                cell = Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, linewidth=0)
                cell.set_facecolor(to_rgba(_HEAT, round(strength[i, j], 3)))
                axes.add_patch(cell)
        else:
            pixels = np.full((num_classes, num_classes, 4), to_rgba(_HEAT))
            pixels[..., 3] = strength
            axes.imshow(pixels, interpolation="nearest", aspect="auto")
        axes.set_xlim(-0.5, num_classes - 0.5)
        axes.set_ylim(num_classes - 0.5, -0.5)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.spines[:].set_visible(False)
        _name_classes(axes, class_names)
        if num_classes <= _MAX_ANNOTATED_CLASSES:
            _annotate(axes, counts, strength)
        right = float(np.trace(counts) / max(counts.sum(), 1))
        told = f"{title} of {num_classes} classes: {100 * right:.1f} % of the rows lie on the diagonal"
        return _svg(figure, told, min_scale=_MIN_SCALE)


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    named = range(len(class_names)) if len(class_names) <= _MAX_NAMED_CLASSES else range(0)
    short = [_shortened(class_names[i]) for i in named]
    crowded = max((len(name) for name in short), default=0) > 3
    axes.set_xticks(list(named), short, rotation=45 if crowded else 0, ha="right" if crowded else "center")
    axes.set_yticks(list(named), short)


def precision_recall(found: Mapping[str, Any], title: str = "Precision against recall") -> Markup:
    """The curves of :func:`xmodal_dist.precision_recall.precision_recall`; the worst classes are coloured and named."""
    classes = list(found["classes"].items())
    coloured = classes[:_MAX_COLOURED_CLASSES]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(4.5, 4.3)
        for place, (_, curve) in enumerate(classes[len(coloured) :]):
            _steps(axes, curve, "other classes" if place == 0 else "_", color=PALE, linewidth=0.8, alpha=0.7)
        for (name, curve), colour, dash in zip(coloured, COLOURS, _DASHES, strict=False):
            label = f"{_shortened(name, 22)}  {curve['average_precision']:.3f}"
            _steps(axes, curve, label, color=colour, linewidth=1.3, linestyle=dash)
        for name, width, dash in (("micro", 1.2, (0, (2, 1.5))), ("macro", 2.2, "-")):
            if found[name] is not None:
                label = f"{name} average  {found[name]['average_precision']:.3f}"
                _steps(axes, found[name], label, color=INK, linewidth=width, linestyle=dash)
        lowest = min((min(curve["precision"]) for _, curve in classes), default=0.0)
        axes.set_ylim(max(0.0, np.floor(10 * lowest - 0.5) / 10), 1.015)
        axes.set_xlim(0, 1.01)
        axes.set_xlabel("recall: share of a class that is found")
        axes.set_ylabel("precision: share of the found that is right")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_percent())
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2, fontsize=8)
        worst = ", ".join(f"{name} {curve['average_precision']:.3f}" for name, curve in coloured)
        return _svg(figure, f"{title}; lowest average precision: {worst}")


def _steps(axes: Axes, curve: Mapping[str, Any], label: str, **style: Any) -> None:
    precision = curve["precision"]
    axes.plot(
        [0.0, *curve["recall"]], [precision[0], *precision], drawstyle="steps-pre", label=label, **style
    )


def reliability(
    bins: Mapping[str, Sequence[Any]],
    uncalibrated: Mapping[str, Sequence[Any]] | None = None,
    title: str = "Reliability diagram",
) -> Markup:
    """Reliability diagram: accuracy per bin of confidence, and below it how many rows each bin holds."""
    rows = np.asarray(bins["rows"], dtype=np.float64)
    num_bins = len(rows)
    centers = (np.arange(num_bins) + 0.5) / num_bins
    filled, confidence, accuracy = _filled(bins)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.5, 4.3), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot(
            [0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated"
        )
        upper.bar(centers[filled], accuracy, width=0.9 / num_bins, color=BLUE, alpha=0.16)
        after = "this model" if uncalibrated is None else "after calibration"
        if uncalibrated is not None:
            _dots(upper, uncalibrated, "before calibration", ORANGE)
        _dots(upper, bins, after, BLUE)
        upper.set_ylabel("accuracy")
        upper.set_ylim(0, 1.03)
        upper.margins(x=0)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
        lower.bar(centers, rows / max(rows.sum(), 1), width=0.9 / num_bins, color=MUTED, alpha=0.6)
        lower.set_ylabel("rows")
        lower.set_xlabel("confidence: probability of the predicted class")
        lower.set_xlim(0, 1)
        for axes in (upper, lower):
            axes.yaxis.set_major_formatter(_percent())
        lower.xaxis.set_major_formatter(_percent())
        pairs = "; ".join(
            f"{100 * c:.0f} % sure, {100 * a:.0f} % right" for c, a in zip(confidence, accuracy, strict=True)
        )
        return _svg(figure, f"{title}: {pairs}")


def _dots(axes: Axes, bins: Mapping[str, Sequence[Any]], name: str, color: str) -> None:
    """A dot for each bin; its area grows with the rows, as does what it says."""
    filled, confidence, accuracy = _filled(bins)
    rows = np.asarray([bins["rows"][b] for b in filled], dtype=np.float64)
    areas = 14 + 130 * rows / max(rows.sum(), 1)
    axes.plot(confidence, accuracy, color=color, linewidth=1, alpha=0.35)
    axes.scatter(
        confidence, accuracy, s=areas, color=color, linewidths=0, label=name, zorder=3, clip_on=False
    )


def _filled(bins: Mapping[str, Sequence[Any]]) -> tuple[list[int], list[float], list[float]]:
    """The bins that hold rows, their confidence and their accuracy."""
    filled = [b for b, rows in enumerate(bins["rows"]) if rows]
    return filled, [bins["confidence"][b] for b in filled], [bins["accuracy"][b] for b in filled]


def histogram(title: str, counts: Sequence[int], x_label: str) -> Markup:
    """Bars of equal width over [0, 1]."""
    num_bins = len(counts)
    centers = (np.arange(num_bins) + 0.5) / num_bins
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(4.5, 2.5)
        axes.bar(centers, counts, width=0.92 / num_bins, color=BLUE)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(_percent())
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(x_label)
        axes.set_ylabel("rows")
        return _svg(figure, title)


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{round(100 * value, 6):g} %")


def _figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.subplots()


def _annotate(axes: Axes, counts: np.ndarray[Any, Any], strength: np.ndarray[Any, Any]) -> None:
    for i, j in zip(*np.nonzero(counts), strict=True):
        color = "white" if strength[i, j] > 0.55 else INK
        axes.text(j, i, f"{counts[i, j]:,.0f}", ha="center", va="center", fontsize=9, color=color)


def _shortened(name: str, limit: int = 16) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _thinned(values: Sequence[float]) -> list[float]:
    """Means of equal runs, at most ``_MAX_POINTS`` of them."""
    if len(values) <= _MAX_POINTS:
        return list(values)
    return [float(part.mean()) for part in np.array_split(np.asarray(values, dtype=np.float64), _MAX_POINTS)]


def _svg(figure: Figure, title: str, min_scale: float = 0.0) -> Markup:
    """The figure, at most a little larger than it was drawn, and not smaller than ``min_scale`` of that."""
    text = io.StringIO()
    with warnings.catch_warnings():
        # The page's reader draws the text with its own fonts; that ours lacks a sign only concerns its width.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    _, view_box, content = _SVG_PARTS.split(text.getvalue(), maxsplit=1)
    for noise in _SVG_NOISE:
        content = noise.sub("", content)
    # Names of clips and markers, and what refers to them, must differ from those of the page's other figures.
    prefix = hashlib.sha256((title + content).encode()).hexdigest()[:8]
    content = _SVG_NAMES.sub(rf"\1f{prefix}\2", content)
    content = _SVG_COLOURS.sub(lambda colour: f"var(--{_VARIABLES[colour[0]]})", content)
    width_px = figure.get_figwidth() * 96
    return Markup(
        f'<svg role="img" aria-label="{escape(title)}" viewBox="{view_box}" '
        f'style="max-width: {_MAX_SCALE * width_px:.0f}px; min-width: {min_scale * width_px:.0f}px" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{content}'
    )
