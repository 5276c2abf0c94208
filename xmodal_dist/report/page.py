"""The frame of every report page: templates, formats, and the check that a page asks for nothing outside."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import jinja2

from xmodal_dist.errors import VerificationError

__all__ = [
    "Bar",
    "Card",
    "bars",
    "flatten",
    "number",
    "percent",
    "render",
    "score",
    "seconds",
    "self_contained",
]

_UNDEFINED = "\N{EN DASH}"
"""What a page shows for a value that is not defined."""

_REQUESTING = frozenset(
    {"src", "href", "xlink:href", "srcset", "poster", "data", "action", "formaction", "background"}
)
_STYLING = frozenset({"style", "fill", "stroke", "filter", "mask", "clip-path", "marker-end"})
_OUTSIDE_CSS = re.compile(r"@import|url\(\s*['\"]?(?!#|data:)", re.IGNORECASE)


@dataclass(frozen=True)
class Card:
    """A key figure at the top of a page; ``note`` is small print below the value, ``tone`` is "" or "bad"."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Bar:
    """A row of a bar list: ``share`` in [0, 1] is of the total, ``width`` in [0, 1] of the longest bar."""

    label: str
    text: str
    share: float
    width: float


def render(template: str, **context: Any) -> str:
    """The page of ``templates/<template>.html.j2``; every value but Markup is escaped."""
    return _environment().get_template(f"{template}.html.j2").render(**context)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xmodal_dist.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, score=score, seconds=seconds)
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """Integers with thousands separators, others with so many significant digits; a dash for None or NaN."""
    if value is None or not math.isfinite(value):
        return _UNDEFINED
    if isinstance(value, int) or (abs(value) >= 10**digits and value == round(value)):
        return f"{int(value):,}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def score(value: float | None, digits: int = 3) -> str:
    """A value with fixed decimals; a dash for None or NaN. Never rounds a value below 1 up to 1."""
    if value is None or not math.isfinite(value):
        return _UNDEFINED
    shown = round(value, digits)
    return f"{1 - 10**-digits if shown == 1 and value < 1 else shown:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage; a dash for None or NaN. Never rounds a value below 1 up to 100 %."""
    if value is None or not math.isfinite(value):
        return _UNDEFINED
    shown = round(100 * value, digits)
    return f"{100 - 10**-digits if shown == 100 and value < 1 else shown:.{digits}f} %"


def seconds(value: float | None) -> str:
    """A duration in the units a person would use; a dash for None or NaN."""
    if value is None or not math.isfinite(value):
        return _UNDEFINED
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if round(value, 1) < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def bars(values: Mapping[str, float], limit: int = 40, unit: str = "") -> list[Bar]:
    """Bars of the values, in their order; what exceeds ``limit`` is summed in one last bar, never left out.

    Args:
        values: name -> count, or seconds with ``unit="s"``.
        limit: most bars of names of their own.
        unit: "s" shows durations, "" shows numbers.
    """
    total, longest = sum(values.values()), max(values.values(), default=0)
    shown = dict(list(values.items())[:limit])
    if len(values) > limit:
        shown[f"{len(values) - limit:,} more"] = total - sum(shown.values())
        longest = max(shown.values())
    text = seconds if unit == "s" else number
    return [
        Bar(name, text(value), value / total if total else 0.0, value / longest if longest else 0.0)
        for name, value in shown.items()
    ]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``section.name`` -> text, as ``--set`` takes them; lists of sections counted."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, Sequence) and any(isinstance(item, Mapping) for item in value):
            flat[f"{prefix}{name}"] = f"{len(value):,} {'entry' if len(value) == 1 else 'entries'}"
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def self_contained(html: str) -> None:
    """Check that a page loads nothing: every address in it is a ``data:`` URL or an anchor in the page.

    Raises:
        VerificationError: the first element that asks for something outside.
    """
    parser = _AddressParser()
    parser.feed(html)
    parser.close()


class _AddressParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attrs:
            address = (value or "").strip()
            if name in _REQUESTING and not address.lower().startswith(("data:", "#")):
                self._refuse(tag, f"{name}={address!r}")
            if name in _STYLING and _OUTSIDE_CSS.search(address):
                self._refuse(tag, f"{name}={address!r}")

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style and (found := _OUTSIDE_CSS.search(data)):
            self._refuse("style", data[found.start() : found.start() + 60])

    def _refuse(self, tag: str, what: str) -> None:
        raise VerificationError(
            f"the page is not self-contained: line {self.getpos()[0]}, <{tag}> has {what[:120]}"
        )
