"""Rows gathered from several tables are what Arrow's own concatenation and take give."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.pipeline.gather import GatheredRows

VALUES = st.lists(st.tuples(st.none() | st.binary(max_size=40), st.none() | st.integers(-5, 5)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    tables=st.lists(VALUES, min_size=1, max_size=4),
    kind=st.sampled_from([pa.binary(), pa.large_binary(), pa.binary_view()]),
    cut=st.integers(0, 3),
    data=st.data(),
)
def test_any_rows_in_any_order(
    tables: list[list[tuple[bytes | None, int | None]]], kind: pa.DataType, cut: int, data: st.DataObject
) -> None:
    made = [
        pa.table(
            {"payload": pa.array([p for p, _ in rows], kind), "n": pa.array([n for _, n in rows], pa.int64())}
        ).slice(cut)
        for rows in tables
    ]
    places = [(i, r) for i, t in enumerate(made) for r in range(t.num_rows)]
    chosen = data.draw(st.lists(st.sampled_from(places), max_size=30)) if places else []
    source, row = np.array(chosen, dtype=np.int64).reshape(-1, 2).T
    rows = GatheredRows(made, source, row)
    stop = data.draw(st.integers(0, len(chosen)))
    start = data.draw(st.integers(0, stop))
    taken = rows.take(start, stop)
    assert taken.column_names == ["payload", "n"] and taken.num_rows == stop - start
    for name in taken.column_names:
        expected = [made[i].column(name)[r].as_py() for i, r in chosen[start:stop]]
        assert taken.column(name).to_pylist() == expected
    taken.validate(full=True)


def test_taking_a_part_does_not_touch_the_rest() -> None:
    big = pa.table({"payload": pa.array([b"x" * 1000] * 100, pa.binary())})
    rows = GatheredRows([big, big], np.repeat([0, 1], 100), np.tile(np.arange(100), 2))
    before = pa.total_allocated_bytes()
    part = rows.take(50, 52)
    assert pa.total_allocated_bytes() - before < 10_000
    assert part.column("payload").to_pylist() == [b"x" * 1000] * 2


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_keep_their_type(kind: pa.DataType) -> None:
    table = pa.table({"text": pa.array(["a", None, "c"], pa.string()).cast(kind)})
    taken = GatheredRows([table, table], np.array([1, 0]), np.array([2, 1])).take(0, 2)
    assert taken.schema.field("text").type == kind and taken.column("text").to_pylist() == ["c", None]
