"""From columns of encoded values to arrays. Rows stay aligned; a bad row is rejected, never replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist.batch import Arrays
from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.rows import one_chunk
from xmodal_dist.randomness import field_salt

__all__ = ["DecodedTable", "RowError", "decode_table", "decoded_row_bytes", "unpack_table"]

_OVERHEAD_BYTES = 64
"""Of a record besides its values: label, key, place."""


class RowError(NamedTuple):
    """Row of the table, field, and what was wrong."""

    row: int
    field: str
    error: DecodeError


class DecodedTable(NamedTuple):
    """All fields of n records.

    Attributes:
        fields: per field, arrays of leading dimension n.
        present: [n, M] bool.
        errors: at most one per row and field.
        fallbacks: what took a slower decoder -> number of values.
    """

    fields: dict[str, Arrays]
    present: NDArray[np.bool_]
    errors: list[RowError]
    fallbacks: Counter[str]


def decode_table(
    table: pa.Table, specs: Sequence[FieldSpec], keys: NDArray[np.uint64] | None
) -> DecodedTable:
    """Decode every field of a table whose media columns hold bytes; thread-safe.

    Args:
        table: n records with the columns of ``specs``.
        specs: the fields, in the order of ``present``.
        keys: [n] record keys in training; None decodes deterministically.
    """
    fields: dict[str, Arrays] = {}
    present = np.zeros((table.num_rows, len(specs)), dtype=np.bool_)
    errors: list[RowError] = []
    fallbacks = Counter[str]()
    for index, spec in enumerate(specs):
        columns = [one_chunk(table.column(name)) for name in spec.columns]
        own_keys = None if keys is None else keys ^ np.int64(field_salt(spec.name)).view(np.uint64)
        decoded = spec.decode(columns, own_keys)
        fields[spec.name] = decoded.arrays
        present[:, index] = decoded.present
        errors.extend(RowError(row, spec.name, error) for row, error in sorted(decoded.errors.items()))
        fallbacks.update(decoded.fallbacks)
    return DecodedTable(fields, present, errors, fallbacks)


def decoded_row_bytes(specs: Sequence[FieldSpec]) -> int:
    """Bytes of one decoded record."""
    nothing = pa.table({name: pa.nulls(1) for spec in specs for name in spec.columns})
    decoded = decode_table(nothing, specs, None)
    arrays = [a for arrays in decoded.fields.values() for a in arrays.values()]
    return sum(a.dtype.itemsize * int(np.prod(a.shape[1:])) for a in arrays) + _OVERHEAD_BYTES


def unpack_table(table: pa.Table, specs: Sequence[FieldSpec]) -> pa.Table:
    """The table with values decoded as far as no randomness is involved; :func:`decode_table` takes it instead."""
    for spec in specs:
        columns = [one_chunk(table.column(name)) for name in spec.columns]
        for name, column in zip(spec.columns, spec.unpack(columns), strict=True):
            table = table.set_column(table.column_names.index(name), name, column)
    return table
