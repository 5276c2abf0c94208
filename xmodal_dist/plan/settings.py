"""What a forecast assumes of the model, the machines and the storage."""

from __future__ import annotations

import math

from pydantic import ConfigDict, Field, model_validator

from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.settings import Settings

__all__ = ["Assumptions"]

_SCORE = ScoreSettings()


class Assumptions(Settings):
    """One scoring run, as the simulation sees it. Limits are of the whole run; None is no limit.

    The defaults of the driver were measured with workers that sleep, those of the storage are what S3 grants one
    prefix of a bucket; see docs/plan.md.

    Attributes:
        seconds_per_record: of one worker at work: reading, decoding, predicting, committing.
        unit_rows: rows of a unit (``score.unit_rows``), unless ``unit_bytes`` is reached before.
        unit_bytes: bytes of input of a unit (``score.unit_bytes``).
        input_bytes_per_record: read from the storage.
        output_bytes_per_record: written to it.
        unit_variation: standard deviation of the units' seconds over their mean; log-normal.
        worker_variation: that of the workers' speeds.
        unit_failure_rate: share of attempts at a unit that fail and are tried again by a worker that lives on.
        commit_s: seconds of a commit beyond those in ``seconds_per_record``, while the worker does nothing else.
        start_s: from the command to its first record, where no machine has to be started.
        workers_started_per_s: how fast a cluster brings workers; None has them all at once.
        worker_mtbf_hours: mean time between losses of one worker (crash, node, preemption), exponential; None: none.
        replacement_s: from the loss of a worker to the first record of its replacement.
        drivers: commands on the same output at a time; each has its share of the workers.
        driver_s_per_unit: of one driver, for each receipt: take it, check it, count it, show it.
        driver_s_per_group: of one driver, for handing out a group of units.
        storage_requests_per_s: that the storage serves.
        storage_bytes_per_s: that it moves.
        storage_latency_s: of a request.
        read_requests_per_unit: pins before and after, footer, row groups.
        commit_requests_per_unit: is it there, attempts, a mark, the part, the mark's removal.
        plan_s_per_unit: planning, one process: a footer read, units cut.
        finish_s_per_unit: the table of files and the manifest.
        objects_listed_per_s: how fast a folder of the output is listed.
        price_per_worker_hour: in any currency; workers are paid from the command's begin to its end.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    seconds_per_record: float = Field(gt=0, le=1e5)
    unit_rows: int = Field(_SCORE.unit_rows, ge=1)
    unit_bytes: int = Field(_SCORE.unit_bytes, ge=1)
    input_bytes_per_record: float = Field(0.0, ge=0)
    output_bytes_per_record: float = Field(64.0, ge=0)
    unit_variation: float = Field(0.05, ge=0, le=10)
    worker_variation: float = Field(0.0, ge=0, le=10)
    unit_failure_rate: float = Field(0.0, ge=0, le=0.9)
    commit_s: float = Field(0.0, ge=0)
    start_s: float = Field(15.0, ge=0)
    workers_started_per_s: float | None = Field(None, gt=0)
    worker_mtbf_hours: float | None = Field(None, gt=0)
    replacement_s: float = Field(60.0, ge=0)
    drivers: int = Field(1, ge=1)
    driver_s_per_unit: float = Field(0.008, ge=0)
    driver_s_per_group: float = Field(0.005, ge=0)
    storage_requests_per_s: float | None = Field(3500.0, gt=0)
    storage_bytes_per_s: float | None = Field(None, gt=0)
    storage_latency_s: float = Field(0.0, ge=0)
    read_requests_per_unit: int = Field(4, ge=0)
    commit_requests_per_unit: int = Field(5, ge=0)
    plan_s_per_unit: float = Field(0.0003, ge=0)
    finish_s_per_unit: float = Field(0.00005, ge=0)
    objects_listed_per_s: float | None = Field(5000.0, gt=0)
    price_per_worker_hour: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _can_end(self) -> Assumptions:
        if self.worker_mtbf_hours is not None:
            unit_s, mtbf_s = self.unit_s, 3600 * self.worker_mtbf_hours
            if unit_s > 3 * mtbf_s:
                raise ValueError(
                    f"worker_mtbf_hours={self.worker_mtbf_hours:g}: a unit takes {unit_s:.0f} s and a worker lives for "
                    f"{mtbf_s:.0f} s, so hardly a unit would end; set fewer unit_rows, or fewer seconds_per_record"
                )
        return self

    @property
    def rows_per_unit(self) -> int:
        """Rows at which a unit ends: ``unit_rows``, or as many as ``unit_bytes`` hold."""
        if not self.input_bytes_per_record:
            return self.unit_rows
        return min(self.unit_rows, max(1, math.ceil(self.unit_bytes / self.input_bytes_per_record)))

    @property
    def unit_s(self) -> float:
        """Mean seconds of a worker for a full unit, where the storage is not overloaded."""
        return self.seconds_per_record * self.rows_per_unit + self.commit_wait_s

    @property
    def commit_wait_s(self) -> float:
        """Seconds of a unit in which its worker only commits."""
        return self.commit_s + self.commit_requests_per_unit * self.storage_latency_s
