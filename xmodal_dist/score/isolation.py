"""Scoring in a process apart, for units whose attempts died: what kills the process is found by halving.

The record that does it is rejected, and every other one is scored as always.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch

from xmodal_dist.bundle import load_bundle
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.errors import DecodeError
from xmodal_dist.score.plan import Unit
from xmodal_dist.score.predictor import Predictor
from xmodal_dist.score.scorer import DecodedBatch, Job, Scorer, record_ids

__all__ = ["IsolatedScorer", "ScoredBatch"]

_TIMEOUT_S = 600.0
"""A batch that takes longer hangs."""


class ScoredBatch(NamedTuple):
    """Rows of a unit, scored.

    Attributes:
        table: predictions.
        rejected: the other records.
        ids: of all rows, "" where there is none.
        present: field -> rows that could be decoded in which it is there.
        profile: counts of their fields' measures, as JSON; {} without a profile to count by.
    """

    table: pa.Table
    rejected: list[Rejected]
    ids: list[str]
    present: dict[str, int]
    profile: dict[str, Any]

    @staticmethod
    def of(job: Job, unit: Unit, scorer: Scorer, batch: DecodedBatch) -> ScoredBatch:
        """Predict a decoded batch."""
        table, rejected = scorer.predict(batch)
        ids = pc.fill_null(record_ids(job, unit, batch.rows, batch.first_row), "").to_pylist()
        return ScoredBatch(table, rejected, ids, scorer.present(batch), scorer.profile(batch).to_json())


class IsolatedScorer:
    """Scores batches of a unit in a child process, which is started again when it dies; a context manager."""

    def __init__(self, job: Job, unit: Unit) -> None:
        self._job, self._unit = job, unit
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> IsolatedScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def score(self, rows: pa.Table, first_row: int) -> list[ScoredBatch]:
        """Predictions and rejected records of some rows, the first of which has the given number; in order."""
        try:
            return [self._in_child(rows, first_row)]
        except BrokenProcessPool:
            fault = DecodeError("decoder_crashed", "scoring this record killed its process")
        except TimeoutError:
            fault = DecodeError("decoder_timeout", f"scoring this record took over {_TIMEOUT_S:g} s")
        self._stop()
        if rows.num_rows == 1:
            name = record_ids(self._job, self._unit, rows, first_row)[0].as_py() or ""
            rejected = Rejected.of(fault, self._unit.path, first_row, name, "")
            return [ScoredBatch(self._job.schema.empty_table(), [rejected], [name], {}, {})]
        half = rows.num_rows // 2
        return [*self.score(rows.slice(0, half), first_row), *self.score(rows.slice(half), first_row + half)]

    def _in_child(self, rows: pa.Table, first_row: int) -> ScoredBatch:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a fork would take over threads' locks
            self._pool = ProcessPoolExecutor(1, context, _start_child, (self._job, self._unit))
        job = self._pool.submit(_score_in_child, _to_ipc(rows), first_row)
        table, rest = job.result(timeout=_TIMEOUT_S)
        return rest._replace(table=_from_ipc(table))

    def _stop(self) -> None:
        if self._pool is not None:
            for process in list(self._pool._processes.values()):
                process.kill()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


_CHILD: list[Callable[[pa.Table, int], ScoredBatch]] = []


def _start_child(job: Job, unit: Unit) -> None:
    torch.set_num_threads(job.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = Scorer(job, Predictor(load_bundle(job.bundle, device), device, job.settings), unit)

    def score(rows: pa.Table, first_row: int) -> ScoredBatch:
        return ScoredBatch.of(job, unit, scorer, scorer.decode((rows, first_row)))

    _CHILD.append(score)


def _score_in_child(rows: bytes, first_row: int) -> tuple[bytes, ScoredBatch]:
    scored = _CHILD[0](_from_ipc(rows), first_row)
    return _to_ipc(scored.table), scored._replace(table=None)


def _to_ipc(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _from_ipc(payload: bytes) -> pa.Table:
    return pa.ipc.open_stream(payload).read_all()
