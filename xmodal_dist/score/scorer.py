"""Turns decoded rows of a unit into predictions, with a column for everything that the run is asked for.

Rows stay in input order; a record that cannot be used is rejected with its reason, never left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.errors import DecodeError
from xmodal_dist.pipeline.decode import RowError
from xmodal_dist.profile import ProfileCounts
from xmodal_dist.score.context import Job
from xmodal_dist.score.decoder import DecodedBatch, note_faults
from xmodal_dist.score.ids import id_list, id_texts, row_ids
from xmodal_dist.score.outputs import prediction_columns
from xmodal_dist.score.plan import Unit
from xmodal_dist.score.predictor import Predicted, Predictor
from xmodal_dist.task import MULTILABEL

__all__ = ["ScoredBatch", "Scorer", "ids_of"]


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
    """Turns decoded micro-batches into predictions; thread-safe."""

    def __init__(self, job: Job, predictor: Predictor) -> None:
        self._job, self._predictor = job, predictor
        self._bundle = predictor.bundle

    def score(self, unit: Unit, batch: DecodedBatch) -> ScoredBatch:
        """Predict a decoded batch of a unit."""
        faults = dict(batch.faults)
        table = self._job.schema.empty_table()
        if len(batch.usable):
            predicted = self._predictor.predict(self._predictor.stage(batch.records))
            finite = _finite(predicted)
            note_faults(faults, _model_errors(predicted, finite, batch.usable))
            if finite.any():
                table = self._table(unit, batch, predicted, finite)
        ids = ids_of(self._job, unit, batch.copied, batch.num_rows, batch.first_row)
        rejected = [
            Rejected.of(fault.error, unit.path, batch.first_row + row, ids[row], fault.field)
            for row, fault in sorted(faults.items())
        ]
        return ScoredBatch(table, rejected, ids, self._present(batch), batch.profile)

    def _present(self, batch: DecodedBatch) -> dict[str, int]:
        """Field -> rows that could be decoded in which it is there."""
        counts = batch.records.present.sum(axis=0)
        return {spec.name: int(count) for spec, count in zip(self._bundle.specs, counts, strict=True)}

    def _table(
        self, unit: Unit, batch: DecodedBatch, predicted: Predicted, kept: NDArray[np.bool_]
    ) -> pa.Table:
        """The columns of the output, for the predictions to be kept."""
        job, values = self._job, predicted.values
        records = predicted.rows[kept]
        good = batch.usable[records]
        if not kept.all():
            values = {name: vectors[kept] for name, vectors in values.items()}
        rows = batch.copied
        if len(good) < batch.num_rows and rows.num_columns:
            rows = rows.take(pa.array(good))
        columns = prediction_columns(self._bundle, job.settings, values, batch.records.present[records])
        places = batch.first_row + good
        id_column = job.settings.id_column
        if id_column is not None:
            columns["id"] = id_texts(rows.column(id_column))
        else:
            columns["id"] = pa.array(row_ids(unit.path, places.tolist()), pa.string())
        columns |= {"source": pa.repeat(unit.path, len(good)), "row": pa.array(places)}
        if job.label_column is not None:
            truth = rows.column(job.label_column)
            task = self._bundle.task
            columns["truth"] = truth.cast(task.label_type) if task is MULTILABEL else id_texts(truth)
        columns |= {name: rows.column(name) for name in job.settings.passthrough}
        return pa.table([columns[name] for name in job.schema.names], schema=job.schema)


def ids_of(job: Job, unit: Unit, copied: pa.Table, num_rows: int, first_row: int) -> list[str]:
    """Ids of some rows of a unit, "" where there is none; file and row stand in where the input has no ids."""
    if job.settings.id_column is None:
        return row_ids(unit.path, range(first_row, first_row + num_rows))
    return id_list(copied.column(job.settings.id_column))


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
