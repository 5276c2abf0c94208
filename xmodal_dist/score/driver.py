"""One command's share of a scoring run: it hands out units, keeps the account, and lets people watch."""

from __future__ import annotations

import datetime
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_dist import runtime, storage
from xmodal_dist.dataset.quarantine import check_budget
from xmodal_dist.errors import BudgetExceededError
from xmodal_dist.progress import ConsoleProgress
from xmodal_dist.score import ledger
from xmodal_dist.score.commit import QUARANTINE
from xmodal_dist.score.context import Job
from xmodal_dist.score.events import EventLog
from xmodal_dist.score.feed import score_units
from xmodal_dist.score.formats import Part, Receipt
from xmodal_dist.score.goodput import scoring_goodput
from xmodal_dist.score.plan import Plan
from xmodal_dist.score.pool import Pool, find_pool
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.tally import Tally
from xmodal_dist.score.telemetry import driver_telemetry

__all__ = ["Driver"]

_TICK_S = 5.0
_RECEIPTS_EVERY_S = 10.0


class Driver:
    """Scores what is left of a generation of a run.

    Args:
        plan: of the run.
        job: what its workers share.
        tally: the account of this generation, empty.
        settings: its budgets count here.
    """

    def __init__(self, plan: Plan, job: Job, tally: Tally, settings: ScoreSettings) -> None:
        self._plan, self._job, self._tally, self._settings = plan, job, tally, settings
        self._partitioned = job.settings.partition_by is not None
        now = datetime.datetime.now(datetime.timezone.utc)
        self._name = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        self._unwritten: list[Part] = []
        self._receipts = 0
        self._written_s = self._began_s = time.monotonic()
        self._seconds: Counter[str] = Counter()
        self._cpu_s = 0.0
        self.rows = 0
        self._pool = Pool(workers=0)

    def run(self, num_workers: int | None, *, from_start: bool) -> None:
        """Until every unit has its part, by whomever; ``rows`` are those that this driver's workers scored.

        ``from_start``: begin at the first unit; others begin anywhere, as drivers that share the work should not meet.
        """
        waiting = self._take_up()
        if not from_start:
            waiting = np.roll(waiting, uuid.uuid4().int % max(1, len(waiting)))
        if len(waiting):
            self._pool = find_pool(self._job.settings, self._job.output, num_workers, len(waiting))
        with EventLog(self._job.output, self._name, self._job.spec) as log:
            self._log_start(log, from_start, waiting)
            try:
                if len(waiting):
                    self._hand_out(waiting, log)
                for part in ledger.read_parts(
                    self._job.output, self._others().tolist(), self._job.generation, self._partitioned
                ):
                    self._account(part)
            except BudgetExceededError:
                tally = self._tally
                log.emit(
                    "budget_exceeded",
                    rows_bad=tally.rows_bad,
                    rows=tally.rows_in,
                    reasons=dict(tally.reasons),
                )
                raise
            finally:
                self._write_receipts()
            log.emit(
                "finished", rows_in=self._tally.rows_in, rows_ok=self._tally.rows_ok,
                rows_bad=self._tally.rows_bad, wall_s=round(time.monotonic() - self._began_s, 3),
            )  # fmt: skip

    def goodput(self) -> dict[str, Any] | None:
        """Where the time of this driver's workers went; None if they scored nothing."""
        if not self.rows:
            return None
        connected = runtime.is_connected()
        cores = runtime.cluster_resource("CPU", 1.0) if connected else float(runtime.usable_cores())
        wall_s = time.monotonic() - self._began_s
        pool = self._pool
        return scoring_goodput(self._seconds, wall_s, self.rows, self._cpu_s, cores, pool.workers, pool.lanes)

    def _take_up(self) -> NDArray[np.int64]:
        """Account for what drivers before have written down; the units that are not committed."""
        committed = np.zeros(len(self._plan), dtype=np.bool_)
        committed[self._committed()] = True
        for part in ledger.read_receipts(self._job.output):
            footer = part.footer
            if footer.generation == self._job.generation and committed[footer.unit]:
                self._tally.add(part)
        self._check_budget()
        return np.flatnonzero(~committed & (self._tally.expected > 0))

    def _hand_out(self, waiting: NDArray[np.int64], log: EventLog) -> None:
        telemetry = driver_telemetry()
        total = int(self._tally.expected.sum())
        with ConsoleProgress("scoring", before=self._tally.rows_in) as progress:
            shown_s = time.monotonic()
            for receipt in self._scored(waiting):
                if receipt is not None:
                    self._take(receipt, log)
                progress(self._tally.rows_in, self._tally.rows_bad, total, workers=self._pool.workers)
                if time.monotonic() - shown_s >= _TICK_S:
                    shown_s = time.monotonic()
                    left = len(self._tally.missing())
                    if telemetry is not None:
                        telemetry.show(
                            workers=self._pool.workers, units_left=left, rows_per_s=progress.rows_per_s
                        )
                    log.emit(
                        "progress", rows_done=self._tally.rows_in, rows=total, rows_bad=self._tally.rows_bad,
                        units_done=len(self._plan) - left, units=len(self._plan),
                        rows_per_s=progress.rows_per_s, left_s=progress.left_s, workers=self._pool.workers,
                    )  # fmt: skip

    def _scored(self, waiting: NDArray[np.int64]) -> Iterator[Receipt | None]:
        """Receipts until all units are committed, None as time passes; ends early if others committed the last ones."""
        for receipt in score_units(self._job, self._plan, waiting.tolist(), self._pool, _TICK_S):
            yield receipt
            if receipt is None and len(self._others()) == len(self._tally.missing()):
                return

    def _take(self, receipt: Receipt, log: EventLog) -> None:
        footer = receipt.part.footer
        if receipt.scored:
            self.rows += footer.rows_in
            log.committed(footer.rows_ok, footer.rows_bad)
        if receipt.died:
            log.emit("attempt_failed", unit=footer.unit, attempts=receipt.died)
        if receipt.isolated:
            log.emit("safe_mode", unit=footer.unit, attempts=receipt.died)
        self._seconds.update(receipt.seconds)
        self._cpu_s += receipt.cpu_s
        self._account(receipt.part)

    def _log_start(self, log: EventLog, from_start: bool, waiting: NDArray[np.int64]) -> None:
        units, rows = len(self._plan), int(self._tally.expected.sum())
        if from_start:
            log.emit("run_started", units=units, rows=rows, workers=self._pool.workers)
        else:
            # Also what a driver that died had no time to account for.
            log.emit(
                "resumed", units=units, rows=rows, units_done=units - len(waiting),
                rows_done=rows - int(self._tally.expected[waiting].sum()), workers=self._pool.workers,
            )  # fmt: skip

    def _others(self) -> NDArray[np.int64]:
        """Units that are committed, but not accounted for."""
        return np.intersect1d(self._committed(), self._tally.missing())

    def _committed(self) -> NDArray[np.int64]:
        units = ledger.committed_units(self._job.output, self._job.generation, self._partitioned)
        return units[units < len(self._plan)]

    def _account(self, part: Part) -> None:
        if self._tally.add(part):
            self._unwritten.append(part)
        if time.monotonic() - self._written_s > _RECEIPTS_EVERY_S:
            self._write_receipts()
        self._check_budget()

    def _write_receipts(self) -> None:
        if self._unwritten:
            ledger.write_receipts(self._job.output, self._name, self._receipts, self._unwritten)
            self._receipts += 1
            self._unwritten.clear()
        self._written_s = time.monotonic()

    def _check_budget(self) -> None:
        """Against the rows of the whole plan and of whole files: the run stops as soon as its end is certain."""
        plan, tally, settings = self._plan, self._tally, self._settings
        place = storage.join(self._job.output, QUARANTINE)
        limit = settings.max_bad_fraction
        check_budget(tally.reasons, plan.num_rows, limit, "score.max_bad_fraction", place)
        over = np.flatnonzero(tally.bad_by_file > settings.max_bad_fraction_per_file * tally.rows_by_file)
        if len(over):
            file = int(over[0])
            bad, rows = int(tally.bad_by_file[file]), int(tally.rows_by_file[file])
            raise BudgetExceededError(
                f"{plan.paths[file]}: {bad} of {rows} records were rejected, more than "
                f"score.max_bad_fraction_per_file={settings.max_bad_fraction_per_file:g} allows; see {place}"
            )
