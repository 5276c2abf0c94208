"""Which records can be packed, as what and in which split, is decided before any media is read; then they are read.

Reading a record is to fetch its values, to check them and, if asked, to make them smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.schema import ID, LABEL, WEIGHT, Field
from xmodal_dist.dataset.split import SPLIT_ALIASES, SPLITS
from xmodal_dist.errors import DataError, DecodeError
from xmodal_dist.ingest.fields import Roles, cells
from xmodal_dist.ingest.labels import read_labels
from xmodal_dist.ingest.media import ByteSpool, fetch
from xmodal_dist.ingest.source import Source, as_numbers, as_text
from xmodal_dist.modalities import Modality, load
from xmodal_dist.task import Label, Task

__all__ = ["Packed", "RecordReader", "Roster", "call_roll"]


class Roster(NamedTuple):
    """The records that can be packed as far as their small values tell.

    Attributes:
        rows: [n] rows of the source's table.
        ids: of every row of the table.
        task: what the labels are.
        labels: of every row of the table; None where the record is rejected.
        weights: of every row of the table, 1.0 where null; None without a weight column.
        declared: [n] index into ``SPLITS`` from the split column, or None without one.
        rejected: the other records.
    """

    rows: NDArray[np.int64]
    ids: list[str]
    task: Task
    labels: Sequence[Label | None]
    weights: list[float] | None
    declared: NDArray[np.int64] | None
    rejected: list[Rejected]


class Packed(NamedTuple):
    """A record ready to be written, and the names of the fields it lacks."""

    values: dict[str, Any]
    missing: tuple[str, ...]


def call_roll(source: Source, roles: Roles, label_separator: str | None = None) -> Roster:
    """Reject records without id, label or split, with an id seen before, or with an impossible weight or label.

    ``label_separator`` stands between the classes of a label; None: the column says what labels are.

    Raises:
        DataError: the split column has values that name no split, or some labels are lists and others not.
    """
    ids = _ids(source, roles.id)
    task, labels, strange = read_labels(source, roles.label, label_separator)
    splits = _declared(source, roles.split)
    weights = None if roles.weight is None else as_numbers(source.table.column(roles.weight)).to_pylist()
    rejected: list[Rejected] = []
    kept: list[int] = []
    first: dict[str, int] = {}
    for row, record_id in enumerate(ids):
        fault = None
        if record_id is None:
            fault = (roles.id or "", "id_missing", "the record has no id")
        elif record_id in first:
            place = first[record_id]
            fault = (
                roles.id or "",
                "id_duplicate",
                f"the id {record_id!r} is that of {source.place(place)} too",
            )
        elif row in strange:
            fault = (roles.label, "column_type", strange[row])
        elif labels[row] is None:
            fault = (roles.label, "label_missing", "the record has no label")
        elif splits is not None and splits[row] is None:
            fault = (roles.split or "", "column_missing", "the record has no split")
        elif weights is not None and not _is_weight(weights[row]):
            fault = (
                roles.weight or "",
                "value_nonfinite",
                f"weight {weights[row]}: expected a number from 0 on",
            )
        if record_id is not None:
            first.setdefault(record_id, row)
        if fault is None:
            kept.append(row)
        else:
            rejected.append(source.reject(row, record_id or "", *fault))
    declared = None if splits is None else [SPLITS.index(splits[row] or "") for row in kept]
    return Roster(
        rows=np.array(kept, dtype=np.int64),
        ids=[record_id or "" for record_id in ids],
        task=task,
        labels=labels,
        weights=None if weights is None else [1.0 if w is None else float(w) for w in weights],
        declared=None if declared is None else np.array(declared, dtype=np.int64),
        rejected=rejected,
    )


class RecordReader:
    """Reads records of a roster; thread-safe.

    Args:
        source: the source.
        roster: its records.
        fields: the fields to read.
        spool: the byte columns of those fields.
        max_image_side_px: as in the settings of packing.
        audio_sample_rate_hz: as in the settings of packing.

    Attributes:
        schema: the columns of what :meth:`read` returns.
    """

    def __init__(
        self,
        source: Source,
        roster: Roster,
        fields: Sequence[Field],
        spool: ByteSpool,
        *,
        max_image_side_px: int | None,
        audio_sample_rate_hz: int | None,
    ) -> None:
        self._source = source
        self._roster = roster
        self._limits = (max_image_side_px, audio_sample_rate_hz)
        self._readers = [_field_reader(source, field, spool) for field in fields]
        columns = [(column.name, column.type) for reader in self._readers for column in reader.columns]
        weight = [] if roster.weights is None else [(WEIGHT, pa.float32())]
        self.schema = pa.schema([(ID, pa.string()), *columns, (LABEL, roster.task.label_type), *weight])

    def read(self, row: int) -> Packed | Rejected:
        """The record of a row of the source's table, or why it cannot be packed."""
        roster = self._roster
        values: dict[str, Any] = {ID: roster.ids[row], LABEL: roster.labels[row]}
        if roster.weights is not None:
            values[WEIGHT] = roster.weights[row]
        missing = []
        for reader in self._readers:
            try:
                found = self._checked(reader, row)
            except DecodeError as error:
                return self._source.reject(
                    row, roster.ids[row], reader.field.name, error.reason, error.detail
                )
            if all(value is None for value in found):
                missing.append(reader.field.name)
            values.update(zip(reader.field.columns, found, strict=True))
        return Packed(values, tuple(missing))

    def _checked(self, reader: _FieldReader, row: int) -> list[Any]:
        found = [column.read(row) for column in reader.columns]
        if all(value is None for value in found):
            return found
        try:
            reader.modality.check(found)
            return [reader.modality.shrink(found[0], *self._limits)] if reader.modality.is_media else found
        except DecodeError as error:
            paths = reader.columns[0].paths
            place = "" if paths is None else paths[row].as_py()
            if not place or place.startswith("data:"):
                raise
            raise DecodeError(error.reason, f"{place[:300]!r}: {error.detail}") from error


def _ids(source: Source, column: str | None) -> list[str | None]:
    if column is not None:
        ids: list[str | None] = as_text(source.table.column(column)).to_pylist()
        return ids
    return [f"{source.files[f]}#{row}" for f, row in zip(source.file_of, source.row_of, strict=True)]


def _declared(source: Source, column: str | None) -> list[str | None] | None:
    if column is None:
        return None
    values = pc.utf8_lower(as_text(source.table.column(column)))
    strange = sorted({v for v in values.unique().to_pylist() if v is not None and v not in SPLIT_ALIASES})
    if strange:
        count = int(pc.sum(pc.is_in(values, pa.array(strange))).as_py())
        raise DataError(
            f"the split column {column!r} has {count} record(s) with {', '.join(map(repr, strange[:5]))}; "
            f"expected one of {', '.join(SPLIT_ALIASES)}. Rename them, or have the splits made: "
            "set --split-ratio, and no --split"
        )
    return [None if value is None else SPLIT_ALIASES[value] for value in values.to_pylist()]


def _is_weight(value: float | None) -> bool:
    return value is None or (math.isfinite(value) and value >= 0)


class _Column(NamedTuple):
    """One packed column of a field: its type, how to get a record's value, and its paths if it has some."""

    name: str
    type: pa.DataType
    read: Callable[[int], Any]
    paths: pa.Array | None = None


class _FieldReader(NamedTuple):
    field: Field
    modality: Modality[Any]
    columns: tuple[_Column, ...]


def _field_reader(source: Source, field: Field, spool: ByteSpool) -> _FieldReader:
    modality = load(field.kind)
    return _FieldReader(field, modality, tuple(_column(source, modality, c, spool) for c in field.columns))


def _column(source: Source, modality: Modality[Any], name: str, spool: ByteSpool) -> _Column:
    if name in source.byte_columns:
        if modality.is_media:
            return _Column(name, pa.binary(), lambda row: spool.get(name, row))
        return _Column(name, pa.string(), lambda row: _decoded(spool.get(name, row)))
    if modality.is_media:
        paths = source.table.column(name).combine_chunks()

        def fetched(row: int) -> bytes | None:
            value = paths[row].as_py()
            return None if value is None else fetch(source.folders[source.file_of[row]], value)

        return _Column(name, pa.binary(), fetched, paths)
    values = cells(source, modality, name)
    return _Column(name, values.type, lambda row: values[row].as_py())


def _decoded(payload: bytes | None) -> str | None:
    try:
        return None if payload is None else payload.decode()
    except UnicodeDecodeError as error:
        raise DecodeError("text_not_utf8", str(error)) from error
