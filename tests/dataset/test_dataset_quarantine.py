from __future__ import annotations

import ast
import io
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import xmodal_dist
from xmodal_dist.dataset.quarantine import REASON_CODES, SCHEMA, Rejected, check_budget, to_parquet
from xmodal_dist.errors import BudgetExceededError, DecodeError

RECORD = Rejected("a.csv", 3, "r3", "image", "media_truncated", "ends after 12 bytes")


@pytest.mark.parametrize("rejected", [[], [RECORD], [RECORD, RECORD._replace(row=4, id="", message="ü")]])
def test_rejected_records_read_back(rejected: list[Rejected]) -> None:
    table = pq.read_table(io.BytesIO(to_parquet(rejected)))
    assert table.schema == SCHEMA
    assert [Rejected(**row) for row in table.to_pylist()] == rejected


def test_a_rejection_keeps_reason_and_a_short_message() -> None:
    rejected = Rejected.of(DecodeError("media_empty", "x" * 900), "a.csv", 1, "r1", "audio")
    assert (rejected.source, rejected.row, rejected.id, rejected.field) == ("a.csv", 1, "r1", "audio")
    assert rejected.reason == "media_empty"
    assert len(rejected.message) == 500


def test_a_reason_outside_the_closed_set_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="media_odd"):
        Rejected.of(DecodeError("media_odd", ""), "a.csv", 1, "r1", "audio")


def test_every_reason_raised_in_the_package_is_of_the_closed_set() -> None:
    package = Path(xmodal_dist.__file__).parent
    raised = {
        call.args[0].value
        for path in package.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "DecodeError"
        if call.args and isinstance(call.args[0], ast.Constant)
    }
    assert len(raised) > 10
    assert raised <= REASON_CODES


@pytest.mark.parametrize(
    ("count", "rows", "fraction"), [(0, 0, 0.0), (0, 10, 0.0), (1, 100, 0.01), (3, 3, 1.0)]
)
def test_within_the_budget(count: int, rows: int, fraction: float) -> None:
    check_budget([RECORD] * count, rows, fraction, "pack.max_bad_fraction")


def test_beyond_the_budget_names_counts_an_example_and_the_setting() -> None:
    rejected = [RECORD, RECORD, RECORD._replace(reason="media_empty")]
    with pytest.raises(BudgetExceededError) as caught:
        check_budget(rejected, 60, 0.01, "pack.max_bad_fraction")
    message = str(caught.value)
    assert "3 of 60 records (5.00%)" in message
    assert "media_truncated 2, media_empty 1" in message
    assert "a.csv row 3, image: media_truncated (ends after 12 bytes)" in message
    assert "raise pack.max_bad_fraction" in message
    assert caught.value.exit_code == 65


def test_counts_alone_are_enough() -> None:
    with pytest.raises(BudgetExceededError, match="2 of 10 records"):
        check_budget(Counter({"media_empty": 2}), 10, 0.1, "score.max_bad_fraction")
