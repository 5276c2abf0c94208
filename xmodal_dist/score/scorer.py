"""Turns rows of a unit into predictions: fetch and decode, predict, and a column for everything the run is asked for.

Rows stay in input order; a record that cannot be used is rejected with its reason, never left out.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from xmodal_dist.batch import Arrays, Records
from xmodal_dist.bundle import Bundle, subsets
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.errors import DecodeError
from xmodal_dist.pipeline.decode import DecodedTable, RowError, decode_table
from xmodal_dist.pipeline.fetch import fetch_media
from xmodal_dist.score.outputs import SUBSET_PREFIX
from xmodal_dist.score.plan import Unit

__all__ = ["DecodedBatch", "Job", "Scorer", "record_ids"]

_FETCHES_PER_THREAD = 8


@dataclass(frozen=True)
class Job:
    """All that the workers of a run share.

    Attributes:
        bundle: path or URI of the bundle.
        fingerprint: of the bundle; another one there is refused.
        output: path or URI of the output.
        spec: digest of the run's identity.
        schema: columns of every part.
        fields: for each field of the bundle, the input's columns it reads, in order.
        id_column: input column of the ids; None where records are named by file and row.
        label_column: input column of the true class in evaluation, else None.
        passthrough: input columns copied to the output.
        media_root: where relative media paths start; None takes the folder of the input file.
        top_k: classes listed for each record.
        batch_rows: records decoded and predicted at once.
        threads: decoders at work in one worker.
        partition_by: column whose values become folders of the output, or None.
        max_attempts: attempts at a unit that may die before its records are scored in a process apart.
        generation: of the parts; above 1, rejected records are tried again.
        retried: then unit -> the output's file of its records that were rejected.
    """

    bundle: str
    fingerprint: str
    output: str
    spec: str
    schema: pa.Schema
    fields: tuple[tuple[str, ...], ...]
    id_column: str | None
    label_column: str | None
    passthrough: tuple[str, ...]
    media_root: str | None
    top_k: int
    batch_rows: int
    threads: int
    partition_by: str | None = None
    max_attempts: int = 3
    generation: int = 1
    retried: Mapping[int, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Input columns to read, each once."""
        optional = [c for c in (self.id_column, self.label_column) if c is not None]
        names = [*(c for columns in self.fields for c in columns), *optional, *self.passthrough]
        return list(dict.fromkeys(names))


class DecodedBatch(NamedTuple):
    """A micro-batch before prediction; ``faults`` by row of the batch."""

    rows: pa.Table
    first_row: int
    ids: pa.Array
    decoded: DecodedTable
    faults: dict[int, RowError]


class _Usable(NamedTuple):
    """The rows of a micro-batch that got predictions, and the probabilities [n, C] by name of the subset."""

    rows: NDArray[np.int64]
    probabilities: dict[str, NDArray[np.float32]]


class Scorer:
    """Turns micro-batches of one unit into predictions."""

    def __init__(self, job: Job, bundle: Bundle, device: torch.device, unit: Unit) -> None:
        self._job, self._bundle, self._device, self._unit = job, bundle, device, unit
        self._base = job.media_root or posixpath.dirname(unit.path)
        self._masks = subsets(bundle.specs) if job.label_column is not None else {}

    def decode(self, batch: tuple[pa.Table, int]) -> DecodedBatch:
        """Fetch and decode some rows, the first of which has the given number; thread-safe."""
        rows, first_row = batch
        job = self._job
        faults: dict[int, RowError] = {}
        _note(faults, _nulls(rows, job.id_column, "id_missing", "the record has no id"))
        _note(faults, _nulls(rows, job.label_column, "label_missing", "the record has no label"))
        values, fetch_errors = fetch_media(
            self._values(rows), self._bundle.specs, self._base, job.threads * _FETCHES_PER_THREAD
        )
        _note(faults, fetch_errors)
        decoded = decode_table(values, self._bundle.specs, None)
        _note(faults, decoded.errors)
        return DecodedBatch(
            rows, first_row, record_ids(self._job, self._unit, rows, first_row), decoded, faults
        )

    def predict(self, batch: DecodedBatch) -> tuple[pa.Table, list[Rejected]]:
        """Predictions of the usable rows, in order, and the other rows, each once with its first fault."""
        rows, first_row, ids, decoded, faults = batch
        usable = self._predict(decoded.fields, decoded.present, _other_rows(rows.num_rows, faults))
        _note(faults, _nonfinite(usable))
        good = _other_rows(rows.num_rows, faults)
        kept = np.isin(usable.rows, good)
        probabilities = {name: p[kept] for name, p in usable.probabilities.items()}
        taken = pa.array(good)
        table = self._table(
            rows.take(taken), ids.take(taken), first_row + good, decoded.present[good], probabilities
        )
        path = self._unit.path
        rejected = [
            Rejected.of(fault.error, path, first_row + row, ids[row].as_py() or "", fault.field)
            for row, fault in sorted(faults.items())
        ]
        return table, rejected

    def _values(self, rows: pa.Table) -> pa.Table:
        """The columns under the names by which the bundle's fields know them."""
        pairs = [
            (name, rows.column(source))
            for spec, columns in zip(self._bundle.specs, self._job.fields, strict=True)
            for name, source in zip(spec.columns, columns, strict=True)
        ]
        return pa.table({name: _plain(column) for name, column in pairs})

    def _predict(
        self, fields: dict[str, Arrays], present: NDArray[np.bool_], rows: NDArray[np.int64]
    ) -> _Usable:
        if not len(rows):
            empty = np.zeros((0, len(self._bundle.classes)), dtype=np.float32)
            return _Usable(rows, dict.fromkeys(["", *self._masks], empty))
        if len(rows) < len(present):
            fields = {f: {name: a[rows] for name, a in arrays.items()} for f, arrays in fields.items()}
            present = present[rows]
        records = Records(
            fields=fields,
            present=present,
            labels=np.full(len(rows), -1, dtype=np.int64),
            weights=np.ones(len(rows), dtype=np.float32),
            keys=np.zeros(len(rows), dtype=np.uint64),
            ids=rows,
        )
        probabilities = self._bundle.predict(records.to_batch().to(self._device), self._masks)
        return _Usable(rows, {name: p.numpy() for name, p in probabilities.items()})

    def _table(
        self,
        rows: pa.Table,
        ids: pa.Array,
        places: NDArray[np.int64],
        present: NDArray[np.bool_],
        probabilities: dict[str, NDArray[np.float32]],
    ) -> pa.Table:
        job, classes = self._job, pa.array(self._bundle.classes, pa.string())
        fused = probabilities[""]
        top = np.argsort(-fused, axis=1, kind="stable")[:, : job.top_k]  # equal ones in class order
        best = np.take_along_axis(fused, top, axis=1)
        pairs = pa.StructArray.from_arrays(
            [classes.take(pa.array(top.ravel())), pa.array(best.ravel(), pa.float32())],
            ["label", "probability"],
        )
        names = pa.array([s.name for s in self._bundle.specs], pa.string())
        columns = {
            "id": ids,
            "source": pa.array([self._unit.path] * len(places), pa.string()),
            "row": pa.array(places, pa.int64()),
            "label": classes.take(pa.array(top[:, 0])),
            "probability": pa.array(best[:, 0], pa.float32()),
            "top_k": _lists(pairs, np.full(len(top), top.shape[1])),
            "modalities": _lists(names.take(pa.array(np.nonzero(present)[1])), present.sum(axis=1)),
            "probabilities": _fixed(fused),
            "truth": _strings(rows.column(job.label_column)) if job.label_column is not None else None,
        }
        columns |= {SUBSET_PREFIX + name: _fixed(probabilities[name]) for name in self._masks}
        copied = {name: rows.column(name) for name in job.passthrough}
        chosen = [copied[f.name] if f.name in copied else columns[f.name] for f in job.schema]
        return pa.table(chosen, schema=job.schema)


def record_ids(job: Job, unit: Unit, rows: pa.Table, first_row: int) -> pa.Array:
    """Ids of some rows of a unit as strings, null where there is none."""
    if job.id_column is None:
        name = posixpath.basename(unit.path)
        return pa.array([f"{name}#{first_row + i}" for i in range(rows.num_rows)], pa.string())
    return _strings(rows.column(job.id_column))


def _note(faults: dict[int, RowError], errors_: Sequence[RowError]) -> None:
    for error in errors_:
        faults.setdefault(error.row, error)


def _nulls(rows: pa.Table, column: str | None, reason: str, message: str) -> list[RowError]:
    if column is None:
        return []
    nulls = np.flatnonzero(pc.is_null(rows.column(column)).to_numpy(zero_copy_only=False))
    return [RowError(row, column, DecodeError(reason, message)) for row in nulls.tolist()]


def _nonfinite(usable: _Usable) -> list[RowError]:
    finite = [np.isfinite(p).all(axis=1) for p in usable.probabilities.values()]
    message = "the model gave probabilities that are not finite"
    bad = usable.rows[~np.logical_and.reduce(finite)]
    return [RowError(row, "", DecodeError("model_nonfinite", message)) for row in bad.tolist()]


def _other_rows(count: int, faults: dict[int, RowError]) -> NDArray[np.int64]:
    return np.setdiff1d(
        np.arange(count, dtype=np.int64), np.fromiter(faults, dtype=np.int64, count=len(faults))
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _strings(column: pa.ChunkedArray) -> pa.Array:
    return _plain(column).cast(pa.string()).combine_chunks()


def _lists(values: pa.Array, lengths: NDArray[np.int64]) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _fixed(values: NDArray[np.float32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), values.shape[1])
