"""A scoring run's metrics, through Ray's metrics API to whatever scrapes the cluster (Prometheus; names get ``ray_``).

Made inside a process that Ray runs or that has joined Ray; without Ray there is none. Labels are of closed sets (reason
codes, stages, outcomes), never ids or paths. Ray exports every 10 seconds or so; what a worker counted in its last
seconds may be lost with it, so these figures are for watching: the account of a run is its manifest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xmodal_dist import runtime
from xmodal_dist.score.formats import Receipt

if TYPE_CHECKING:  # commands that need no Ray do not wait for its import
    from ray.util.metrics import Counter

__all__ = ["DriverTelemetry", "WorkerTelemetry", "driver_telemetry", "worker_telemetry"]

_PREFIX = "xmodal_score_"
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class WorkerTelemetry:
    """What one worker does; make one in each actor."""

    def __init__(self) -> None:
        from ray.util.metrics import Histogram

        self._rows_in = _counter("rows_in", "Rows of committed units")
        self._rows_ok = _counter("rows_ok", "Rows with a prediction")
        self._rows_bad = _counter("rows_quarantined", "Rejected rows by reason code", "reason")
        self._units = _counter(
            "units", "Units by outcome: committed, or lost_race to another worker", "outcome"
        )
        self._attempts = _counter("units_retried", "Attempts at units that earlier attempts died of")
        self._isolated = _counter("units_isolated", "Units scored record by record in a process apart")
        self._bytes = _counter("bytes_read", "Bytes of the input read")
        self._stages = _counter("stage_seconds", "Seconds by stage, threads added up", "stage")
        self._unit_s = Histogram(
            f"{_PREFIX}unit_seconds", "Seconds of a unit by stage", boundaries=_SECONDS, tag_keys=("stage",)
        )

    def unit(self, receipt: Receipt, *, bytes_read: int = 0, died: int = 0) -> None:
        """Count an attempt that came to its end.

        Args:
            receipt: what the worker tells of the unit; rows count only if this attempt's part stands.
            bytes_read: bytes of the input that the attempt read.
            died: attempts at the unit that died before.
        """
        footer = receipt.part.footer
        self._units.inc(1, {"outcome": "committed" if receipt.scored else "lost_race"})
        _add(self._attempts, int(died > 0))
        _add(self._isolated, int(receipt.isolated))
        _add(self._bytes, bytes_read)
        if receipt.scored:
            _add(self._rows_in, footer.rows_in)
            _add(self._rows_ok, footer.rows_ok)
            for reason, rows in footer.reasons.items():
                _add(self._rows_bad, rows, {"reason": reason})
        for stage, seconds in receipt.seconds.items():
            _add(self._stages, seconds, {"stage": stage})
            self._unit_s.observe(seconds, {"stage": stage})


class DriverTelemetry:
    """How far a driver is."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._workers = Gauge(f"{_PREFIX}workers", "Workers alive")
        self._left = Gauge(f"{_PREFIX}units_left", "Units without a part")
        self._rate = Gauge(f"{_PREFIX}rows_per_second", "Rows a second over the last minute")

    def show(self, *, workers: int, units_left: int, rows_per_s: float) -> None:
        """Set the present state."""
        self._workers.set(workers)
        self._left.set(units_left)
        self._rate.set(rows_per_s)


def worker_telemetry() -> WorkerTelemetry | None:
    """Of a worker; None outside Ray."""
    return WorkerTelemetry() if runtime.is_connected() else None


def driver_telemetry() -> DriverTelemetry | None:
    """Of a driver; None outside Ray."""
    return DriverTelemetry() if runtime.is_connected() else None


def _counter(name: str, description: str, *labels: str) -> Counter:
    from ray.util.metrics import Counter

    return Counter(f"{_PREFIX}{name}", description, tag_keys=labels)


def _add(counter: Counter, amount: float, labels: dict[str, str] | None = None) -> None:
    """Ray's counters refuse zero."""
    if amount > 0:
        counter.inc(amount, labels or {})
