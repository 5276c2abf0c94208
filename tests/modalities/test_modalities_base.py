"""Values reach decoders as views of Arrow's buffers, whatever the layout, and go back in one buffer."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities.base import decode_each, replace_each

VIEWS = [getattr(pa, name)() for name in ("binary_view", "string_view") if hasattr(pa, name)]


def _seen(column: pa.Array) -> dict[int, bytes]:
    seen: dict[int, bytes] = {}

    def decode_one(row: int, payload: memoryview) -> None:
        assert payload.format == "B"
        seen[row] = bytes(payload)

    present, errors = decode_each(column, decode_one)
    assert present.tolist() == [row in seen for row in range(len(column))]
    assert not errors
    return seen


@settings(deadline=None)
@given(
    values=st.lists(st.none() | st.text("ab\u00e9", max_size=20).map(str.encode), max_size=20),
    start=st.integers(0, 5),
    kind=st.sampled_from([pa.binary(), pa.large_binary(), pa.string(), pa.large_string(), *VIEWS]),
)
def test_every_value_is_seen_once(values: list[bytes | None], start: int, kind: pa.DataType) -> None:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or "string" in str(kind)
    column = pa.array([v.decode() if text and v is not None else v for v in values], kind).slice(start)
    expected = {row: value for row, value in enumerate(values[start:]) if value is not None}
    assert _seen(column) == expected
    replaced = replace_each(column, lambda payload: (b"<", payload, b">"))
    assert replaced.type == pa.large_binary()
    assert replaced.to_pylist() == [None if v is None else b"<" + v + b">" for v in values[start:]]
    replaced.validate(full=True)


def test_columns_without_values() -> None:
    for column in (pa.nulls(3), pa.array([], pa.binary()), pa.array([None, None], pa.binary())):
        assert _seen(column) == {}
        assert replace_each(column, lambda payload: None).to_pylist() == [None] * len(column)
    assert _seen(pa.array([b"", None, b""])) == {0: b"", 2: b""}


def test_what_cannot_be_replaced_stays() -> None:
    def replace(payload: memoryview) -> Any:
        if payload == b"bad":
            raise DecodeError("media_decode_error", "as it is")
        return None if payload == b"same" else (b"new",)

    column = pa.array([b"x", None, b"bad", b"same", b""])
    assert replace_each(column, replace).to_pylist() == [b"new", None, b"bad", b"same", b"new"]


def test_an_error_holds_no_payload() -> None:
    def decode_one(row: int, payload: memoryview) -> None:
        raise DecodeError("media_empty", f"row {row}")

    present, errors = decode_each(pa.array([b"a", None]), decode_one)
    assert not present.any()
    assert errors[0].args == ("media_empty", "row 0")
    assert errors[0].__traceback__ is None
    with pytest.raises(ValueError, match="other"):  # only DecodeError is a record's own fault
        decode_each(pa.array([b"a"]), lambda row, payload: (_ for _ in ()).throw(ValueError("other")))
