"""Scores one unit: read, decode and predict in micro-batches, then commit. Runs in an actor, and without Ray too."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xmodal_dist import errors, storage
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.errors import XmodalError
from xmodal_dist.pipeline.ahead import map_ahead
from xmodal_dist.profile import ProfileCounts
from xmodal_dist.score import ledger
from xmodal_dist.score.commit import commit, part_path, read_part
from xmodal_dist.score.formats import CONFIDENCE_BINS, Footer, Receipt, to_json
from xmodal_dist.score.ids import IdHash
from xmodal_dist.score.isolation import IsolatedScorer
from xmodal_dist.score.outputs import ABSTAINED
from xmodal_dist.score.plan import Unit
from xmodal_dist.score.predictor import Predictor
from xmodal_dist.score.scorer import Job, ScoredBatch, Scorer
from xmodal_dist.score.source import read_unit
from xmodal_dist.score.telemetry import worker_telemetry

__all__ = ["ScoreWorker", "receipt_of", "score_unit"]

_A = TypeVar("_A")
_R = TypeVar("_R")


class ScoreWorker:
    """Callable for ``map_batches``: a table of units in, a receipt a unit out, as each is committed.

    Args:
        job: what the workers of the run share.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loaded: Predictor | None = None
        self._telemetry = worker_telemetry()

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """Score and commit units. An error raised on purpose travels as a receipt, so that its class survives."""
        for row in units.to_pylist():
            receipt = failure = kind = ""
            try:
                found = score_unit(self._job, self._predictor(), Unit(**row))
                receipt = to_json(found, indent=None)
                if self._telemetry is not None:
                    self._telemetry.unit(found, bytes_read=found.bytes_read, died=found.died)
            except XmodalError as error:
                failure, kind = str(error), type(error).__name__
            yield pa.table({"receipt": [receipt], "failure": [failure], "kind": [kind]})

    def _predictor(self) -> Predictor:
        """The bundle, loaded and warmed once; with the first unit, so that an error has a receipt to travel on."""
        if self._loaded is None:
            self._loaded = Predictor.load(self._job.bundle, self._job.fingerprint, self._job.settings)
            self._loaded.warm_up()
        return self._loaded


def receipt_of(row: dict[str, str]) -> Receipt:
    """What a worker told of a unit.

    Raises:
        XmodalError: what the worker raised, as its own class.
    """
    if row["failure"]:
        raise getattr(errors, row["kind"])(row["failure"])
    return Receipt.model_validate_json(row["receipt"])


def score_unit(job: Job, predictor: Predictor, unit: Unit) -> Receipt:
    """Score one unit and commit it, unless it is committed already.

    An attempt that dies leaves a mark in the output. After ``max_attempts`` of them, records are scored in a
    process apart, so that one that kills its process is found and rejected.

    Raises:
        DataError: its file is damaged or was replaced.
    """
    path = part_path(unit.number, job.generation, job.settings.partition_by is not None)
    if storage.exists(storage.join(job.output, path)):
        return Receipt(part=read_part(job.output, path), scored=False)
    attempt = uuid.uuid4().hex[:12]
    died = ledger.begin_attempt(job.output, unit.number, attempt, job.generation)
    try:
        isolated = died >= job.settings.max_attempts
        receipt = _Attempt(job, predictor, unit, attempt).run(isolated)
        return receipt.model_copy(update={"died": died})
    finally:
        ledger.end_attempt(job.output, unit.number, attempt, job.generation)


class _Attempt:
    """One attempt at a unit, and where its time goes."""

    def __init__(self, job: Job, predictor: Predictor, unit: Unit, attempt: str) -> None:
        self._job, self._predictor, self._unit, self._name = job, predictor, unit, attempt
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._bytes_read = 0

    def run(self, isolated: bool) -> Receipt:
        """Score and commit."""
        began_cpu_s = time.process_time()
        tables: list[pa.Table] = []
        rejected: list[Rejected] = []
        ids, present, profile, rows_in = IdHash(), Counter[str](), ProfileCounts(), 0
        for batch in self._isolated() if isolated else self._overlapped():
            tables.append(batch.table)
            rejected.extend(batch.rejected)
            ids.add(batch.ids)
            present.update(batch.present)
            profile += batch.profile
            rows_in += len(batch.ids)
        table = pa.concat_tables(tables) if tables else self._job.schema.empty_table()
        seen = {
            "rows_in": rows_in,
            "ids": ids.hexdigest(),
            "present": dict(present),
            "profile": profile.to_json(),
        }
        footer = self._footer(table, rejected, seen)
        with self._stage("commit"):
            part, won = commit(self._job.output, footer, table, rejected, self._job.settings.partition_by)
        return Receipt(
            part=part,
            scored=won,
            isolated=isolated,
            bytes_read=self._bytes_read,
            seconds=dict(self._seconds),
            cpu_s=time.process_time() - began_cpu_s,
        )

    def _overlapped(self) -> Iterator[ScoredBatch]:
        """Threads read and decode while the model predicts."""
        scorer, threads = Scorer(self._job, self._predictor, self._unit), self._job.settings.threads
        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
            decode = self._timed("decode", scorer.decode)
            batches = map_ahead(decode, self._batches(), pool, ahead=threads + 1)
            while True:
                with self._stage("wait_for_data"):
                    decoded = next(batches, None)
                if decoded is None:
                    return
                with self._stage("predict"):
                    scored = scorer.predict(decoded)
                yield scored

    def _isolated(self) -> Iterator[ScoredBatch]:
        with IsolatedScorer(self._job, self._unit) as scorer:
            for rows, first_row in self._batches():
                with self._stage("isolated"):
                    scored = scorer.score(rows, first_row)
                yield from scored

    def _batches(self) -> Iterator[tuple[pa.Table, int]]:
        """The rows to score, with the number of their first row."""
        batches = self._numbered(read_unit(self._unit, self._job.columns, self._predictor.read_rows))
        again = self._job.retried.get(self._unit.number)
        if again is None:
            return batches
        payload = storage.read_bytes(storage.join(self._job.output, again))
        wanted = pq.read_table(pa.BufferReader(payload), columns=["row"])["row"].to_numpy()
        return _only(batches, set(wanted.tolist()))

    def _footer(self, table: pa.Table, rejected: list[Rejected], seen: dict[str, Any]) -> Footer:
        job, unit = self._job, self._unit
        probability = table.column("probability").to_numpy()
        bins = np.histogram(probability, bins=CONFIDENCE_BINS, range=(0.0, 1.0))[0]
        return Footer(
            spec=job.spec,
            unit=unit.number,
            generation=job.generation,
            attempt=self._name,
            source=unit.path,
            start=unit.start,
            stop=unit.stop,
            rows_ok=table.num_rows,
            rows_bad=len(rejected),
            labels=_counts(table.column("label")),
            confidence=tuple(bins.tolist()),
            reasons=dict(Counter(r.reason for r in rejected)),
            **seen,
        )

    def _numbered(self, tables: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, int]]:
        """Tables with the number of their first row."""
        row = self._unit.start
        while True:
            with self._stage("read"):
                table = next(tables, None)
            if table is None:
                return
            self._bytes_read += table.nbytes
            yield table, row
            row += table.num_rows

    def _timed(self, name: str, function: Callable[[_A], _R]) -> Callable[[_A], _R]:
        def timed(item: _A) -> _R:
            with self._stage(name):
                return function(item)

        return timed

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began_s = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[name] += time.perf_counter() - began_s


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Label -> rows."""
    found = pc.value_counts(pc.fill_null(column, ABSTAINED)).to_pylist()
    return {value["values"]: value["counts"] for value in found}


def _only(batches: Iterable[tuple[pa.Table, int]], wanted: set[int]) -> Iterator[tuple[pa.Table, int]]:
    """Only the wanted rows, each run of neighbours as a batch."""
    for table, first_row in batches:
        rows = [row for row in range(first_row, first_row + table.num_rows) if row in wanted]
        start = 0
        for index in range(1, len(rows) + 1):
            if index == len(rows) or rows[index] != rows[index - 1] + 1:
                yield table.slice(rows[start] - first_row, index - start), rows[start]
                start = index
