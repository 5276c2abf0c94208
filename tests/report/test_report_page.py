"""Formats, the escaping of values, and the check for self-containedness."""

from __future__ import annotations

import pytest

from xmodal_dist.errors import VerificationError
from xmodal_dist.report import page

CONTAINED = """<!DOCTYPE html><html><head>
<style>a { background: url(data:image/png;base64,AA) }</style></head><body>
<a href="#top">up</a><img src="data:image/png;base64,AA"><p>see https://example.org</p>
<svg xmlns="http://www.w3.org/2000/svg"><g clip-path="url(#c)"/><use xlink:href="#m"/></svg></body></html>"""


def test_self_contained_page_passes():
    page.self_contained(CONTAINED)


@pytest.mark.parametrize(
    "element",
    [
        '<script src="https://cdn.example.org/x.js"></script>',
        '<script src="x.js"></script>',
        '<link rel="stylesheet" href="http://example.org/x.css">',
        '<img src="//example.org/x.png">',
        '<img srcset="x.png 2x">',
        '<video poster="x.png"></video>',
        '<p style="background: url(https://example.org/x.png)">',
        "<style>@import 'x.css';</style>",
        "<style>a { background: url('x.png') }</style>",
        '<svg><image xlink:href="x.png"/></svg>',
    ],
)
def test_request_to_the_outside_is_found(element):
    with pytest.raises(VerificationError, match="not self-contained: line 5"):
        page.self_contained(CONTAINED + "\n" + element)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (page.number(1234567), "1,234,567"),
        (page.number(0.123456), "0.123"),
        (page.number(799.0), "799"),
        (page.number(12345.0), "12,345"),
        (page.number(None), "–"),
        (page.number(float("nan")), "–"),
        (page.score(0.87), "0.870"),
        (page.score(0.9999), "0.999"),
        (page.score(1.0), "1.000"),
        (page.score(None), "–"),
        (page.percent(0.5), "50.0 %"),
        (page.percent(0.99999), "99.9 %"),
        (page.percent(1.0), "100.0 %"),
        (page.percent(0.999, 0), "99 %"),
        (page.seconds(0.25), "250 ms"),
        (page.seconds(12.34), "12.3 s"),
        (page.seconds(59.97), "1 min 00 s"),
        (page.seconds(83.2), "1 min 23 s"),
        (page.seconds(7384), "2 h 03 min"),
    ],
)
def test_formats(shown, expected):
    assert shown == expected


def test_bars_sum_up_what_they_do_not_name():
    bars = page.bars({f"c{i}": 10 for i in range(50)}, limit=8)
    assert [bar.label for bar in bars[-2:]] == ["c7", "42 more"]
    assert bars[-1].text == "420"
    assert sum(bar.share for bar in bars) == pytest.approx(1)
    assert max(bar.width for bar in bars) == 1
    assert page.bars({}) == []
    assert [bar.width for bar in page.bars({"a": 0, "b": 0})] == [0, 0]


def test_settings_are_flattened_to_the_names_that_set_takes():
    nested = {
        "train": {"epochs": 8, "amp": None, "betas": [0.9, 0.99]},
        "name": "x",
        "parts": [{"a": 1}],
        "no": {},
    }
    assert page.flatten(nested) == {
        "train.epochs": "8",
        "train.amp": "null",
        "train.betas": "[0.9, 0.99]",
        "name": "x",
        "parts": "1 entry",
        "no": "{}",
    }
