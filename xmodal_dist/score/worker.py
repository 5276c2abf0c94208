"""Scores one unit: read, decode and predict in micro-batches, then commit. Runs in an actor, and without Ray as well.

A unit's rows stay in input order; a record that cannot be used is rejected with its reason, never left out.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch

from xmodal_dist import errors
from xmodal_dist.bundle import Bundle, load_bundle
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.errors import CheckpointError, XmodalError
from xmodal_dist.pipeline.ahead import map_ahead
from xmodal_dist.score import ledger
from xmodal_dist.score.formats import CONFIDENCE_BINS, Footer, Part, to_json
from xmodal_dist.score.scorer import Job, Scorer
from xmodal_dist.score.source import Unit, read_unit

__all__ = ["ScoreWorker", "part_from_receipt", "score_unit"]


class ScoreWorker:
    """Callable for ``map_batches`` with one unit a batch: a row of a unit in, a receipt out.

    Args:
        job: what the workers of the run share.
    """

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self._job = job
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded: Bundle | None = None

    def __call__(self, units: pa.Table) -> pa.Table:
        """Score and commit units. An error raised on purpose travels as a receipt, so that its class survives."""
        receipts, failures, kinds = [], [], []
        for row in units.to_pylist():
            receipt = failure = kind = ""
            try:
                receipt = to_json(score_unit(self._job, self._bundle(), self._device, Unit(**row)))
            except XmodalError as error:
                failure, kind = str(error), type(error).__name__
            receipts.append(receipt)
            failures.append(failure)
            kinds.append(kind)
        return pa.table({"part": receipts, "failure": failures, "kind": kinds})

    def _bundle(self) -> Bundle:
        """The bundle, loaded once; with the first unit, so that an error has a receipt to travel on."""
        if self._loaded is None:
            bundle = load_bundle(self._job.bundle, self._device)
            if bundle.fingerprint != self._job.fingerprint:
                raise CheckpointError(
                    f"{self._job.bundle} was replaced while the run was going on; score with it anew"
                )
            self._loaded = bundle
        return self._loaded


def part_from_receipt(receipt: dict[str, str]) -> Part:
    """The part that a worker committed.

    Raises:
        XmodalError: what the worker raised, as its own class.
    """
    if receipt["kind"]:
        raise getattr(errors, receipt["kind"], XmodalError)(receipt["failure"])
    return Part.model_validate_json(receipt["part"])


def score_unit(job: Job, bundle: Bundle, device: torch.device, unit: Unit) -> Part:
    """Score one unit and commit it.

    Raises:
        DataError: its file is damaged or was replaced.
    """
    scorer = Scorer(job, bundle, device, unit)
    tables: list[pa.Table] = []
    rejected: list[Rejected] = []
    rows_in = 0
    batches = _numbered(read_unit(unit, job.columns, job.batch_rows), unit.start)
    # Threads decode while the model predicts.
    with ThreadPoolExecutor(job.threads, thread_name_prefix="decode") as pool:
        for decoded in map_ahead(scorer.decode, batches, pool, ahead=job.threads + 1):
            predictions, bad = scorer.predict(decoded)
            tables.append(predictions)
            rejected.extend(bad)
            rows_in += decoded.rows.num_rows
    table = pa.concat_tables(tables) if tables else job.schema.empty_table()
    probability = table.column("probability").to_numpy()
    bins = np.histogram(probability, bins=CONFIDENCE_BINS, range=(0.0, 1.0))[0]
    footer = Footer(
        spec=job.spec,
        unit=unit.number,
        attempt=uuid.uuid4().hex[:12],
        source=unit.path,
        start=unit.start,
        stop=unit.stop,
        rows_in=rows_in,
        rows_ok=table.num_rows,
        rows_bad=len(rejected),
        labels=dict(Counter(table.column("label").to_pylist())),
        confidence=tuple(bins.tolist()),
        reasons=dict(Counter(r.reason for r in rejected)),
    )
    return ledger.commit(job.output, footer, table, rejected)


def _numbered(tables: Iterable[pa.Table], row: int) -> Iterator[tuple[pa.Table, int]]:
    """Tables with the number of their first row."""
    for table in tables:
        yield table, row
        row += table.num_rows
