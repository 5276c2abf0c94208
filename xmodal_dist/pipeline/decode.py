"""From columns of encoded values to Records, in threads. Rows stay aligned; a bad row is rejected, never replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist.batch import Arrays
from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities import Decoded
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.modalities.randomness import field_salt

__all__ = ["DecodedTable", "RowError", "decode_table", "unpack_table"]

_ROWS_PER_PIECE = 64


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
    table: pa.Table, specs: Sequence[FieldSpec], keys: NDArray[np.uint64] | None, threads: int
) -> DecodedTable:
    """Decode every field of a table whose media columns hold bytes.

    Args:
        table: n records with the columns of ``specs``.
        specs: the fields, in the order of ``present``.
        keys: [n] record keys in training; None decodes deterministically.
        threads: decoders at work; 1 decodes in this thread.
    """
    table = table.combine_chunks()
    starts = list(range(0, table.num_rows, _ROWS_PER_PIECE)) if threads > 1 else [0]
    length = _ROWS_PER_PIECE if threads > 1 else table.num_rows
    pieces = [
        (table.slice(at, length), None if keys is None else keys[at : at + length]) for at in (starts or [0])
    ]
    if len(pieces) == 1:
        return _decode_piece(pieces[0][0], pieces[0][1], specs)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        return _concatenate(list(pool.map(lambda piece: _decode_piece(piece[0], piece[1], specs), pieces)))


def unpack_table(table: pa.Table, specs: Sequence[FieldSpec]) -> pa.Table:
    """The table with values decoded as far as no randomness is involved; :func:`decode_table` takes it instead."""
    for spec in specs:
        columns = [_single(table.column(name)) for name in spec.columns]
        unpacked = spec.modality.unpack(spec.settings, spec.fitted, columns)
        for name, column in zip(spec.columns, unpacked, strict=True):
            table = table.set_column(table.column_names.index(name), name, column)
    return table


def _decode_piece(
    table: pa.Table, keys: NDArray[np.uint64] | None, specs: Sequence[FieldSpec]
) -> DecodedTable:
    fields: dict[str, Arrays] = {}
    present = np.zeros((table.num_rows, len(specs)), dtype=np.bool_)
    errors: list[RowError] = []
    fallbacks = Counter[str]()
    for index, spec in enumerate(specs):
        columns = [_single(table.column(name)) for name in spec.columns]
        own_keys = None if keys is None else keys ^ np.int64(field_salt(spec.name)).view(np.uint64)
        decoded: Decoded = spec.modality.decode(spec.settings, spec.fitted, columns, own_keys)
        fields[spec.name] = decoded.arrays
        present[:, index] = decoded.present
        errors.extend(RowError(row, spec.name, error) for row, error in sorted(decoded.errors.items()))
        fallbacks.update(decoded.fallbacks)
    return DecodedTable(fields, present, errors, fallbacks)


def _single(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return column.combine_chunks() if column.num_chunks else pa.array([], column.type)


def _concatenate(pieces: Sequence[DecodedTable]) -> DecodedTable:
    first = pieces[0].fields
    fields = {
        name: {key: np.concatenate([p.fields[name][key] for p in pieces]) for key in arrays}
        for name, arrays in first.items()
    }
    errors = [
        e._replace(row=e.row + index * _ROWS_PER_PIECE)
        for index, piece in enumerate(pieces)
        for e in piece.errors
    ]
    fallbacks = sum((p.fallbacks for p in pieces), Counter[str]())
    return DecodedTable(fields, np.concatenate([p.present for p in pieces]), errors, fallbacks)
