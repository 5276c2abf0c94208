"""The scoring page."""

from __future__ import annotations

from xmodal_dist.report.page import self_contained
from xmodal_dist.report.scoring import render

MANIFEST = {
    "bundle": "runs/a/bundle",
    "fingerprint": "b3f1",
    "rows_in": 1000,
    "wall_s": 12.5,
    "rows_per_s": 80.0,
    "inputs": ["s3://bucket/a.parquet"],
    "parts": [{"name": "part-0", "rows": 990}],
}


def test_page_is_self_contained_and_rows_add_up():
    html = render(
        MANIFEST, {"cat": 600, "dog": 390}, [0, 0, 90, 900], {"media_truncated": 7, "text_not_utf8": 3}
    )
    self_contained(html)
    for shown in ("1,000", "990", "99.00 % of the input", "media_truncated", "80/s", "12.5 s", "1 entry"):
        assert shown in html
    assert "Rows do not add up" not in html
    assert html.index("cat</td>") < html.index("dog</td>")


def test_rows_that_do_not_add_up_are_an_error():
    assert "8 rows of the input are neither scored nor quarantined" in render(
        MANIFEST, {"cat": 992}, [992], {}
    )
    assert "3 rows more came out than went in" in render(
        MANIFEST, {"cat": 1000}, [1000], {"media_truncated": 3}
    )


def test_nothing_scored():
    html = render({"rows_in": 0}, {}, [0] * 10, {})
    self_contained(html)
    assert "Empty: no row was rejected." in html


def test_many_classes_are_summed_not_dropped():
    html = render({}, {f"c{i:03d}": 10 for i in range(100)}, [1000], {})
    assert "60 more" in html and ">600<" in html
