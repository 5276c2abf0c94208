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
from numpy.typing import NDArray

from xmodal_dist.batch import Batch
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.schema import LABEL
from xmodal_dist.errors import DecodeError
from xmodal_dist.pipeline.decode import DecodedTable, RowError, decode_table
from xmodal_dist.pipeline.fetch import fetch_media
from xmodal_dist.pipeline.rows import plain
from xmodal_dist.profile import ProfileCounts, count
from xmodal_dist.score.ids import id_list, id_texts, row_ids
from xmodal_dist.score.outputs import prediction_columns
from xmodal_dist.score.plan import Unit
from xmodal_dist.score.predictor import Predicted, Predictor, records_of
from xmodal_dist.score.settings import ScoreSettings

__all__ = ["DecodedBatch", "Job", "ScoredBatch", "Scorer", "ids_of"]

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
        settings: of the run; its ``id_column`` is None only where the input has no ids.
        generation: of the parts; above 1, rejected records are tried again.
        retried: then unit -> the output's file of its records that were rejected.
    """

    bundle: str
    fingerprint: str
    output: str
    spec: str
    schema: pa.Schema
    fields: tuple[tuple[str, ...], ...]
    settings: ScoreSettings
    generation: int = 1
    retried: Mapping[int, str] = field(default_factory=dict)

    @property
    def label_column(self) -> str | None:
        """Input column of the true class in evaluation, else None."""
        return LABEL if self.settings.evaluation else None

    @property
    def copied(self) -> list[str]:
        """Input columns that go to the output as they are, each once."""
        optional = [c for c in (self.settings.id_column, self.label_column) if c is not None]
        return list(dict.fromkeys([*optional, *self.settings.passthrough]))

    @property
    def columns(self) -> list[str]:
        """Input columns to read, each once."""
        return list(dict.fromkeys([*(c for columns in self.fields for c in columns), *self.copied]))


class DecodedBatch(NamedTuple):
    """A micro-batch before prediction.

    Attributes:
        rows: as read.
        first_row: number of its first row in the input file.
        decoded: values of all rows.
        faults: row of the batch -> why it cannot be used.
        usable: [n] int64, the other rows.
        batch: these on the model's device; None if there are none.
    """

    rows: pa.Table
    first_row: int
    decoded: DecodedTable
    faults: dict[int, RowError]
    usable: NDArray[np.int64]
    batch: Batch | None


class ScoredBatch(NamedTuple):
    """A micro-batch after prediction.

    Attributes:
        table: predictions of the usable rows, in order; the output's columns.
        rejected: the other rows, each once with its first fault.
        ids: of all rows, "" where there is none.
        present: field -> rows that could be decoded in which it is there.
        profile: counts of their fields' measures; none without a profile to count by.
    """

    table: pa.Table
    rejected: list[Rejected]
    ids: list[str]
    present: dict[str, int]
    profile: ProfileCounts


class Scorer:
    """Turns micro-batches of one unit into predictions."""

    def __init__(self, job: Job, predictor: Predictor, unit: Unit) -> None:
        self._job, self._predictor, self._unit = job, predictor, unit
        self._bundle = predictor.bundle
        self._base = job.settings.media_root or posixpath.dirname(unit.path)

    def decode(self, batch: tuple[pa.Table, int]) -> DecodedBatch:
        """Fetch and decode some rows, the first of which has the given number; thread-safe."""
        rows, first_row = batch
        job = self._job
        faults: dict[int, RowError] = {}
        _note(faults, _nulls(rows, job.settings.id_column, "id_missing", "the record has no id"))
        _note(faults, _nulls(rows, job.label_column, "label_missing", "the record has no label"))
        values, fetch_errors = fetch_media(
            self._values(rows), self._bundle.specs, self._base, job.settings.threads * _FETCHES_PER_THREAD
        )
        _note(faults, fetch_errors)
        decoded = decode_table(values, self._bundle.specs, None)
        _note(faults, decoded.errors)
        usable = _other_rows(rows.num_rows, faults)
        return DecodedBatch(rows, first_row, decoded, faults, usable, self._stage(decoded, usable))

    def predict(self, batch: DecodedBatch) -> ScoredBatch:
        """Predict a decoded batch."""
        faults = dict(batch.faults)
        table = self._job.schema.empty_table()
        if batch.batch is not None:
            predicted = self._predictor.predict(batch.batch)
            finite = _finite(predicted)
            _note(faults, _model_errors(predicted, finite, batch.usable))
            if finite.any():
                table = self._table(batch, predicted, finite)
        ids = ids_of(self._job, self._unit, batch.rows, batch.first_row)
        rejected = [
            Rejected.of(fault.error, self._unit.path, batch.first_row + row, ids[row], fault.field)
            for row, fault in sorted(faults.items())
        ]
        return ScoredBatch(table, rejected, ids, self._present(batch), self._profile(batch))

    def _present(self, batch: DecodedBatch) -> dict[str, int]:
        """Field -> rows that could be decoded in which it is there."""
        counts = batch.decoded.present[batch.usable].sum(axis=0)
        return {spec.name: int(count) for spec, count in zip(self._bundle.specs, counts, strict=True)}

    def _profile(self, batch: DecodedBatch) -> ProfileCounts:
        """Counts of the measures of the rows that could be decoded, if the bundle knows its training data's."""
        known, decoded = self._bundle.profile, batch.decoded
        if known is None:
            return ProfileCounts()
        return count(known, self._bundle.specs, decoded.fields, decoded.present, rows=batch.usable)

    def _stage(self, decoded: DecodedTable, usable: NDArray[np.int64]) -> Batch | None:
        fields, present = decoded.fields, decoded.present
        if not len(usable):
            return None
        if len(usable) < len(present):
            fields = {f: {name: a[usable] for name, a in arrays.items()} for f, arrays in fields.items()}
            present = present[usable]
        return self._predictor.stage(records_of(fields, present))

    def _values(self, rows: pa.Table) -> pa.Table:
        """The columns under the names by which the bundle's fields know them."""
        pairs = [
            (name, rows.column(source))
            for spec, columns in zip(self._bundle.specs, self._job.fields, strict=True)
            for name, source in zip(spec.columns, columns, strict=True)
        ]
        return pa.table({name: plain(column) for name, column in pairs})

    def _table(self, batch: DecodedBatch, predicted: Predicted, kept: NDArray[np.bool_]) -> pa.Table:
        """The columns of the output, for the predictions to be kept."""
        job, values = self._job, predicted.values
        good = batch.usable[predicted.rows[kept]]
        if not kept.all():
            values = {name: vectors[kept] for name, vectors in values.items()}
        # Only what is copied: media would be most of the work.
        rows = batch.rows.select(job.copied)
        if len(good) < batch.rows.num_rows:
            rows = rows.take(pa.array(good))
        present = batch.decoded.present[good]
        columns = prediction_columns(self._bundle, job.settings, values, present)
        places = batch.first_row + good
        id_column = job.settings.id_column
        if id_column is not None:
            columns["id"] = id_texts(rows.column(id_column))
        else:
            columns["id"] = pa.array(row_ids(self._unit.path, places.tolist()), pa.string())
        columns |= {"source": pa.repeat(self._unit.path, len(good)), "row": pa.array(places)}
        if job.label_column is not None:
            columns["truth"] = id_texts(rows.column(job.label_column))
        columns |= {name: rows.column(name) for name in job.settings.passthrough}
        return pa.table([columns[name] for name in job.schema.names], schema=job.schema)


def ids_of(job: Job, unit: Unit, rows: pa.Table, first_row: int) -> list[str]:
    """Ids of some rows of a unit, "" where there is none; file and row stand in where the input has no ids."""
    if job.settings.id_column is None:
        return row_ids(unit.path, range(first_row, first_row + rows.num_rows))
    return id_list(rows.column(job.settings.id_column))


def _note(faults: dict[int, RowError], errors_: Sequence[RowError]) -> None:
    for error in errors_:
        faults.setdefault(error.row, error)


def _nulls(rows: pa.Table, column: str | None, reason: str, message: str) -> list[RowError]:
    if column is None:
        return []
    nulls = np.flatnonzero(pc.is_null(rows.column(column)).to_numpy(zero_copy_only=False))
    return [RowError(row, column, DecodeError(reason, message)) for row in nulls.tolist()]


def _finite(predicted: Predicted) -> NDArray[np.bool_]:
    """[n] whether all that the model says of a record is finite."""
    finite = np.ones(len(predicted.rows), dtype=np.bool_)
    for vectors in predicted.values.values():
        finite &= np.isfinite(vectors.reshape(len(vectors), -1)).all(axis=1)
    return finite


def _model_errors(
    predicted: Predicted, finite: NDArray[np.bool_], usable: NDArray[np.int64]
) -> list[RowError]:
    """What the model could not do, by row of the micro-batch."""
    large = DecodeError("model_error", "there is not enough memory to predict this record, even alone")
    nonfinite = DecodeError("model_nonfinite", "the model gave numbers that are not finite")
    errors = [RowError(row, "", large) for row in usable[predicted.too_large].tolist()]
    return errors + [RowError(row, "", nonfinite) for row in usable[predicted.rows[~finite]].tolist()]


def _other_rows(count: int, faults: dict[int, RowError]) -> NDArray[np.int64]:
    return np.setdiff1d(
        np.arange(count, dtype=np.int64), np.fromiter(faults, dtype=np.int64, count=len(faults))
    )
