"""A source as packing sees it: every record's small values in one table, and where each record came from.

Media stay where they are: paths and URIs are fetched, and byte columns read back, when a record is packed.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.schema import Field

__all__ = ["NO_NUMBER", "SPLIT", "Source", "as_numbers", "as_text", "relative_name", "sample", "single"]

SPLIT = "split"
"""Column of the split in sources that name one."""
_SAMPLE_VALUES = 1000
_LARGEST_EXACT_INTEGER = 2.0**53
NO_NUMBER = ("na", "n/a", "nan", "null", "none", "-", "?")
"""What stands in a column of numbers, in any case, where there is none."""


@dataclass(frozen=True)
class Source:
    """The readable records of a source, and the unreadable ones.

    Attributes:
        table: n records; columns of bytes are not in it. Values of path columns are paths or URIs.
        files: names of the source's files, relative to the source.
        folders: for each file, where its relative paths start.
        file_of: [n] index into ``files``.
        row_of: [n] position of the record in its file, from 0.
        typed: False where every value is text that may mean a number (CSV).
        byte_columns: columns of encoded bytes left in the files, each with a sample of its values.
        lists: columns in which lists stand, and how to read the values of all records: only a label is read so.
        paths: files to read byte columns from, in the order of ``files``.
        fields: the fields, where the source's form tells them; else they are inferred.
        rejected: records that could not be read.
        notes: what was left out, in sentences.
    """

    table: pa.Table
    files: tuple[str, ...]
    folders: tuple[str, ...]
    file_of: NDArray[np.int64]
    row_of: NDArray[np.int64]
    typed: bool = True
    byte_columns: dict[str, pa.Array] = field(default_factory=dict)
    lists: Mapping[str, Callable[[], list[Any]]] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return [*self.table.column_names, *self.byte_columns]

    @property
    def rows(self) -> int:
        """Records of the source, unreadable ones included."""
        return len(self.row_of) + len(self.rejected)  # a table without columns has no length

    def place(self, row: int) -> str:
        """Where record ``row`` of the table comes from, in words."""
        return f"{self.files[self.file_of[row]]} row {self.row_of[row]}"

    def reject(self, row: int, record_id: str, column: str, reason: str, message: str) -> Rejected:
        """A rejection of record ``row`` of the table."""
        source, place = self.files[self.file_of[row]], int(self.row_of[row])
        return Rejected(source, place, record_id, column, reason, message[:500])


def relative_name(path: str, root: str) -> str:
    """A file's path below ``root``; its last part where it is ``root`` itself."""
    return (
        path[len(root) :].lstrip("/") if path.startswith(root.rstrip("/") + "/") else posixpath.basename(path)
    )


def sample(column: pa.ChunkedArray) -> pa.Array:
    """At most 1,000 values that are not null, evenly spread over the column."""
    values = column.drop_null()
    places = np.unique(
        np.linspace(0, max(len(values) - 1, 0), min(len(values), _SAMPLE_VALUES)).astype(np.int64)
    )
    return single(values.take(pa.array(places)))


def as_text(column: pa.ChunkedArray) -> pa.Array:
    """A column as trimmed text, null where nothing is left; whole numbers stored as floats lose their ``.0``."""
    array = single(column)
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
        exact = pc.less_equal(pc.abs(array), _LARGEST_EXACT_INTEGER)
        whole = pc.all(pc.and_(exact, pc.equal(pc.floor(array), array))).as_py()
        array = array.cast(pa.int64()) if whole is not False else array
    text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def as_numbers(column: pa.ChunkedArray) -> pa.Array:
    """Text as int64 or float64 where every value is a number or says that there is none; else unchanged."""
    array = single(column)
    if not pa.types.is_string(array.type):
        return array
    trimmed = pc.utf8_trim_whitespace(array)
    trimmed = pc.if_else(
        pc.is_in(pc.utf8_lower(trimmed), pa.array(NO_NUMBER)), pa.scalar(None, pa.string()), trimmed
    )
    if trimmed.null_count == len(trimmed) or pc.any(pc.match_substring_regex(trimmed, r"^[+-]?0\d")).as_py():
        return array
    for numeric in (pa.int64(), pa.float64()):
        try:
            return trimmed.cast(numeric)
        except pa.ArrowInvalid:
            continue
    return array


def single(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array."""
    if isinstance(column, pa.Array):
        return column
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
