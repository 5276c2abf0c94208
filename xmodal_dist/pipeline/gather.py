"""Rows picked from several tables into one, payloads copied once and only when they are taken.

Arrow's ``take`` over chunked columns joins all chunks first, for every call; a batch drawn from many row groups would
cost as much as all of them (https://github.com/ray-project/ray/issues/36099 is what that does to a shuffle).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist.pipeline.rows import holds_bytes, one_chunk

__all__ = ["GatheredRows"]


class GatheredRows:
    """n rows of some tables of the same columns, in a given order.

    Args:
        tables: at least one.
        source: [n] which table each row comes from.
        row: [n] its position there.
    """

    def __init__(self, tables: Sequence[pa.Table], source: NDArray[np.int64], row: NDArray[np.int64]) -> None:
        self._source, self._row = source, row
        self._names = tables[0].column_names
        self._payloads = {
            name: [_Payload(one_chunk(t.column(name))) for t in tables]
            for name in self._names
            if holds_bytes(tables[0].schema.field(name).type)
        }
        others = [name for name in self._names if name not in self._payloads]
        starts = np.concatenate([[0], np.cumsum([t.num_rows for t in tables])]).astype(np.int64)
        joined = pa.concat_tables([t.select(others) for t in tables]).combine_chunks()
        self._others = joined.take(pa.array(starts[source] + row))

    def take(self, start: int, stop: int) -> pa.Table:
        """Rows [start, stop) as one table with one chunk a column; binary columns become large_binary."""
        source, row = self._source[start:stop], self._row[start:stop]
        others = self._others.slice(start, stop - start)
        columns = [
            _gather(self._payloads[name], source, row) if name in self._payloads else others.column(name)
            for name in self._names
        ]
        return pa.table(columns, names=self._names)


class _Payload:
    """One binary array as numpy views of its buffers."""

    def __init__(self, array: pa.Array) -> None:
        if not pa.types.is_large_binary(array.type):
            array = array.cast(pa.large_binary())
        _, offsets, data = array.buffers()
        count = len(array)
        self.offsets = np.zeros(1, dtype=np.int64)
        if offsets is not None and count:
            self.offsets = np.frombuffer(offsets, np.int64)[array.offset : array.offset + count + 1]
        self.data = np.frombuffer(data if data is not None else b"", np.uint8)
        self.valid = None
        if array.null_count:
            self.valid = np.asarray(array.is_valid())


def _gather(payloads: Sequence[_Payload], source: NDArray[np.int64], row: NDArray[np.int64]) -> pa.Array:
    """The chosen values as one large_binary array, in one copy."""
    count = len(row)
    begin, end = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    valid = np.ones(count, dtype=np.bool_)
    for number in np.unique(source):
        here, payload = source == number, payloads[number]
        begin[here], end[here] = payload.offsets[row[here]], payload.offsets[row[here] + 1]
        if payload.valid is not None:
            valid[here] = payload.valid[row[here]]
    offsets = np.concatenate([[0], np.cumsum(end - begin)]).astype(np.int64)
    data = np.empty(int(offsets[-1]), dtype=np.uint8)
    for to, length, number, at in zip(
        offsets.tolist(), (end - begin).tolist(), source.tolist(), begin.tolist(), strict=False
    ):
        data[to : to + length] = payloads[number].data[at : at + length]
    mask = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(pa.large_binary(), count, [mask, pa.py_buffer(offsets), pa.py_buffer(data)])
