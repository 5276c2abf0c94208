"""Decides, before any media is read, which records can be packed, under which id, label and weight, in which split."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.split import SPLIT_ALIASES, SPLITS
from xmodal_dist.errors import DataError
from xmodal_dist.ingest.fields import Roles
from xmodal_dist.ingest.source import Source, as_numbers, as_text

__all__ = ["Roster", "call_roll"]


class Roster(NamedTuple):
    """The records that can be packed as far as their small values tell.

    Attributes:
        rows: [n] rows of the source's table.
        ids: of every row of the table.
        labels: of every row of the table; None where the record is rejected.
        weights: of every row of the table, 1.0 where null; None without a weight column.
        declared: [n] index into ``SPLITS`` from the split column, or None without one.
        rejected: the other records.
    """

    rows: NDArray[np.int64]
    ids: list[str]
    labels: list[str | None]
    weights: list[float] | None
    declared: NDArray[np.int64] | None
    rejected: list[Rejected]


def call_roll(source: Source, roles: Roles) -> Roster:
    """Reject records without id, label or split, with an id seen before, or with an impossible weight.

    Raises:
        DataError: the split column has values that name no split.
    """
    ids = _ids(source, roles.id)
    labels = as_text(source.table.column(roles.label)).to_pylist()
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
            where = f"{source.files[source.file_of[place]]} row {source.row_of[place]}"
            fault = (roles.id or "", "id_duplicate", f"the id {record_id!r} is that of {where} too")
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
        labels=labels,
        weights=None if weights is None else [1.0 if w is None else float(w) for w in weights],
        declared=None if declared is None else np.array(declared, dtype=np.int64),
        rejected=rejected,
    )


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
            f"expected one of {', '.join(SPLIT_ALIASES)}. Rename them, or leave --split out to have the splits made"
        )
    return [None if value is None else SPLIT_ALIASES[value] for value in values.to_pylist()]


def _is_weight(value: float | None) -> bool:
    return value is None or (math.isfinite(value) and value >= 0)
