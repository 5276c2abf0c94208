"""Scoring in a process apart, for units whose attempts died: what kills the process is found by halving.

The record that does it is rejected, and every other one is scored as always.
"""

from __future__ import annotations

import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

import pyarrow as pa

from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.errors import DecodeError
from xmodal_dist.profile import ProfileCounts
from xmodal_dist.score.context import Job
from xmodal_dist.score.decoder import Decoder, RowBatch
from xmodal_dist.score.plan import Unit
from xmodal_dist.score.predictor import Predictor
from xmodal_dist.score.scorer import ScoredBatch, Scorer, ids_of

__all__ = ["IsolatedScorer"]

_TIMEOUT_S = 600.0
"""A batch that takes longer hangs."""


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
        except FutureTimeoutError:
            fault = DecodeError("decoder_timeout", f"scoring this record took over {_TIMEOUT_S:g} s")
        self._stop()
        if rows.num_rows == 1:
            ids = ids_of(self._job, self._unit, rows, 1, first_row)
            rejected = Rejected.of(fault, self._unit.path, first_row, ids[0], "")
            return [ScoredBatch(self._job.schema.empty_table(), [rejected], ids, {}, ProfileCounts())]
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


class _Child:
    """The child's side: loads the bundle with the first batch, so that what fails there is no dead process."""

    def __init__(self, job: Job, unit: Unit) -> None:
        self._job, self._unit = job, unit
        self._loaded: tuple[Decoder, Scorer] | None = None

    def score(self, rows: pa.Table, first_row: int) -> ScoredBatch:
        if self._loaded is None:
            job = self._job
            predictor = Predictor.load(job.bundle, job.fingerprint, job.settings)
            self._loaded = Decoder.of(job, predictor.bundle), Scorer(job, predictor)
        decoder, scorer = self._loaded
        return scorer.score(self._unit, decoder.decode(self._unit, RowBatch(rows, first_row, 0.0)))


_CHILD: list[_Child] = []


def _start_child(job: Job, unit: Unit) -> None:
    _CHILD.append(_Child(job, unit))


def _score_in_child(rows: bytes, first_row: int) -> tuple[bytes, ScoredBatch]:
    scored = _CHILD[0].score(_from_ipc(rows), first_row)
    return _to_ipc(scored.table), scored._replace(table=None)


def _to_ipc(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _from_ipc(payload: bytes) -> pa.Table:
    return pa.ipc.open_stream(payload).read_all()
