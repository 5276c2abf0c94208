"""Scores one unit: read, decode and predict in micro-batches, then commit. Runs in an actor, and without Ray too."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xmodal_dist import errors, storage
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.errors import DecoderDiedError, XmodalError
from xmodal_dist.profile import ProfileCounts
from xmodal_dist.score import ledger
from xmodal_dist.score.commit import commit, part_path, read_part
from xmodal_dist.score.context import Job
from xmodal_dist.score.decoder import DecodedBatch, Decoder
from xmodal_dist.score.decoding import Decoding, TaskDecoding, ThreadDecoding
from xmodal_dist.score.formats import CONFIDENCE_BINS, Footer, Receipt, to_json
from xmodal_dist.score.ids import IdHash
from xmodal_dist.score.isolation import IsolatedScorer
from xmodal_dist.score.outputs import ABSTAINED, LABELS
from xmodal_dist.score.plan import Unit
from xmodal_dist.score.pool import Pool
from xmodal_dist.score.predictor import Predictor
from xmodal_dist.score.scorer import ScoredBatch, Scorer
from xmodal_dist.score.telemetry import worker_telemetry

__all__ = ["ScoreWorker", "UnitScorer", "receipt_of"]


class ScoreWorker:
    """Callable for ``map_batches``: a table of units in, a receipt a unit out, as each is committed; thread-safe.

    Args:
        job: what the workers of the run share.
        pool: how this one decodes.
    """

    def __init__(self, job: Job, pool: Pool) -> None:
        self._job, self._pool = job, pool
        self._loaded: UnitScorer | None = None
        self._lock = threading.Lock()
        self._telemetry = worker_telemetry()

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """Score and commit units. An error raised on purpose travels as a receipt, so that its class survives."""
        for row in units.to_pylist():
            receipt = failure = kind = ""
            try:
                found = self._scorer().score(Unit(**row))
                receipt = to_json(found, indent=None)
                if self._telemetry is not None:
                    self._telemetry.unit(found, bytes_read=found.bytes_read, died=found.died)
            except XmodalError as error:
                failure, kind = str(error), type(error).__name__
            yield pa.table({"receipt": [receipt], "failure": [failure], "kind": [kind]})

    def _scorer(self) -> UnitScorer:
        """The bundle, loaded and warmed once; with the first unit, so that an error has a receipt to travel on."""
        with self._lock:
            if self._loaded is None:
                self._loaded = UnitScorer(self._job, self._predictor(), pool=self._pool)
            return self._loaded

    def _predictor(self) -> Predictor:
        predictor = Predictor.load(self._job.bundle, self._job.fingerprint, self._job.settings)
        predictor.warm_up()
        return predictor


def receipt_of(row: dict[str, str]) -> Receipt:
    """What a worker told of a unit.

    Raises:
        XmodalError: what the worker raised, as its own class.
    """
    if row["failure"]:
        raise getattr(errors, row["kind"])(row["failure"])
    return Receipt.model_validate_json(row["receipt"])


class UnitScorer:
    """Scores units and commits them; thread-safe.

    Args:
        job: the run.
        predictor: its model.
        pool: where units are decoded; by default in one thread.
    """

    def __init__(self, job: Job, predictor: Predictor, pool: Pool | None = None) -> None:
        self._job, self._predictor = job, predictor
        pool = pool or Pool(workers=1)
        self._decoder = Decoder.of(job, predictor.bundle, pool.decoders if pool.placement == "local" else 1)
        if pool.placement == "ray":
            self._decoding: Decoding = TaskDecoding(self._decoder, pool.decoder_cpus)
        else:
            self._decoding = ThreadDecoding(self._decoder)
        self._isolation = threading.Lock()
        self._cpu = _CpuMeter()

    def score(self, unit: Unit) -> Receipt:
        """Score one unit and commit it, unless it is committed already.

        An attempt that dies leaves a mark in the output. After ``max_attempts`` of them, records are scored in a
        process apart, so that one that kills its process is found and rejected.

        Raises:
            DataError: its file is damaged or was replaced.
        """
        job = self._job
        path = part_path(unit.number, job.generation, job.settings.partition_by is not None)
        if storage.exists(storage.join(job.output, path)):
            return Receipt(part=read_part(job.output, path), scored=False)
        name = uuid.uuid4().hex[:12]
        died = ledger.begin_attempt(job.output, unit.number, name, job.generation)
        try:
            receipt = self._attempt(unit, name, isolated=died >= job.settings.max_attempts)
            cpu_s = receipt.cpu_s + self._cpu.since_last_s()
            return receipt.model_copy(update={"died": died, "cpu_s": cpu_s})
        finally:
            ledger.end_attempt(job.output, unit.number, name, job.generation)

    def _attempt(self, unit: Unit, name: str, *, isolated: bool) -> Receipt:
        if not isolated:
            try:
                attempt = _Attempt(self._job, unit, name)
                return attempt.run(self._overlapped(attempt, unit))
            except DecoderDiedError:  # it would die again, for all that we know
                pass
        with self._isolation:  # each such process loads the model once more
            attempt = _Attempt(self._job, unit, name)
            return attempt.run(self._isolated(attempt, unit), isolated=True)

    def _overlapped(self, attempt: _Attempt, unit: Unit) -> Iterator[ScoredBatch]:
        """Others read and decode while the model predicts."""
        scorer = Scorer(self._job, self._predictor)
        batches = self._decoding.batches(unit, self._predictor.read_rows)
        while True:
            with attempt.stage("wait_for_data"):
                decoded = next(batches, None)
            if decoded is None:
                return
            attempt.note(decoded)
            with attempt.stage("predict"):
                scored = scorer.score(unit, decoded)
            yield scored

    def _isolated(self, attempt: _Attempt, unit: Unit) -> Iterator[ScoredBatch]:
        with IsolatedScorer(self._job, unit) as scorer:
            for batch in self._decoder.read(unit, self._predictor.read_rows):
                with attempt.stage("isolated"):
                    scored = scorer.score(batch.rows, batch.first_row)
                yield from scored


class _CpuMeter:
    """CPU time of this process, told once: what units in several lanes cost can only be told together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told_s = time.process_time()

    def since_last_s(self) -> float:
        """CPU-seconds since the last call."""
        with self._lock:
            now_s = time.process_time()
            spent_s, self._told_s = now_s - self._told_s, now_s
            return spent_s


class _Attempt:
    """One attempt at a unit, and where its time goes; for one thread."""

    def __init__(self, job: Job, unit: Unit, name: str) -> None:
        self._job, self._unit, self._name = job, unit, name
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._bytes_read, self._cpu_s = 0, 0.0

    def run(self, batches: Iterator[ScoredBatch], *, isolated: bool = False) -> Receipt:
        """Put the predictions together and commit them."""
        tables: list[pa.Table] = []
        rejected: list[Rejected] = []
        ids, present, profile, rows_in = IdHash(), Counter[str](), ProfileCounts(), 0
        for batch in batches:
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
        with self.stage("commit"):
            part, won = commit(self._job.output, footer, table, rejected, self._job.settings.partition_by)
        return Receipt(
            part=part,
            scored=won,
            isolated=isolated,
            bytes_read=self._bytes_read,
            seconds=dict(self._seconds),
            cpu_s=self._cpu_s,
        )

    def note(self, decoded: DecodedBatch) -> None:
        """What a batch cost before it came here."""
        self._bytes_read += decoded.bytes_read
        self._cpu_s += decoded.cpu_s
        for name, seconds in decoded.seconds.items():
            self._seconds[name] += seconds

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block as that of a stage."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - began_s

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
            labels=_counts(table),
            confidence=tuple(bins.tolist()),
            reasons=dict(Counter(r.reason for r in rejected)),
            **seen,
        )


def _counts(table: pa.Table) -> dict[str, int]:
    """Label -> rows; a row of several labels counts for each."""
    several = LABELS in table.column_names
    column = pc.list_flatten(table.column(LABELS)) if several else table.column("label")
    found = pc.value_counts(pc.fill_null(column, ABSTAINED)).to_pylist()
    return {value["values"]: value["counts"] for value in found}
