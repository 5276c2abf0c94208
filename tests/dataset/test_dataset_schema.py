from __future__ import annotations

import pytest
from pydantic import ValidationError

from xmodal_dist.dataset.schema import Field, check_fields, parse_field
from xmodal_dist.errors import UsageError


def _field(name: str, *columns: str) -> Field:
    return Field(name=name, kind="text", columns=columns)


def test_fields_that_can_live_together() -> None:
    check_fields([_field("a", "x"), _field("b", "y", "z")])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([_field("a", "x"), _field("a", "y")], "two fields are named 'a'"),
        ([_field("a", "label")], "reads the column 'label', a reserved name"),
        ([_field("a", "x"), _field("b", "x")], "column 'x' belongs to both 'a' and 'b'"),
        ([_field("a", "x", "x")], "column 'x' belongs to both 'a' and 'a'"),
        ([_field("a+b", "x")], r"must not contain '\+'"),
    ],
)
def test_fields_that_cannot(fields: list[Field], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_fields(fields)


def test_a_field_reads_a_column() -> None:
    with pytest.raises(ValidationError, match="at least one column"):
        Field(name="a", kind="text", columns=())


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("image=image", Field(name="image", kind="image", columns=("image",))),
        ("words=text:title,keywords", Field(name="words", kind="text", columns=("title", "keywords"))),
        (" x = my.kind : a , b ", Field(name="x", kind="my.kind", columns=("a", "b"))),
    ],
)
def test_written_fields(text: str, field: Field) -> None:
    assert parse_field(text) == field


@pytest.mark.parametrize("text", ["image", "=image", "image=", "image=:x"])
def test_fields_written_otherwise_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected NAME=KIND"):
        parse_field(text)
