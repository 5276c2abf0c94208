"""A scoring worker that sleeps instead of computing and commits as the real one does; it needs no model library."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from xmodal_dist.score.commit import commit
from xmodal_dist.score.formats import CONFIDENCE_BINS, Footer, Receipt, to_json
from xmodal_dist.score.ids import IdHash, row_ids
from xmodal_dist.score.ledger import begin_attempt, end_attempt
from xmodal_dist.score.plan import Unit
from xmodal_dist.score.pool import Pool

__all__ = ["SCHEMA", "SleepingJob", "SleepingWorker"]

SCHEMA = pa.schema([("source", pa.string()), ("row", pa.int64()), ("label", pa.string())])


class SleepingJob(NamedTuple):
    """What the workers share: the output, the run's digest, and how long a unit takes."""

    output: str
    spec: str
    sleep_s: float


class SleepingWorker:
    """Stands in for ``ScoreWorker``; tells in a receipt's ``seconds`` when it began and ended by the wall clock."""

    def __init__(self, job: SleepingJob, pool: Pool) -> None:
        self._job, self._pool = job, pool

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """Sleep over every unit and commit it."""
        for row in units.to_pylist():
            yield pa.table({"receipt": [self._score(Unit(**row))], "failure": [""], "kind": [""]})

    def _score(self, unit: Unit) -> str:
        began_s, job = time.time(), self._job
        attempt = f"{os.getpid()}-{unit.number}"
        begin_attempt(job.output, unit.number, attempt)
        time.sleep(job.sleep_s)
        rows = range(unit.start, unit.stop)
        ids = IdHash()
        ids.add(row_ids(unit.path, rows))
        footer = Footer(
            spec=job.spec,
            unit=unit.number,
            attempt=attempt,
            source=unit.path,
            start=unit.start,
            stop=unit.stop,
            rows_in=unit.rows,
            rows_ok=unit.rows,
            rows_bad=0,
            ids=ids.hexdigest(),
            labels={"cat": unit.rows},
            confidence=(unit.rows, *[0] * (CONFIDENCE_BINS - 1)),
            present={},
            reasons={},
        )
        table = pa.table([[unit.path] * unit.rows, list(rows), ["cat"] * unit.rows], schema=SCHEMA)
        part, won = commit(job.output, footer, table, [])
        end_attempt(job.output, unit.number, attempt)
        seconds = {"began": began_s, "ended": time.time(), "worker": float(os.getpid())}
        return to_json(Receipt(part=part, scored=won, seconds=seconds), indent=None)
