"""A training run's metrics, through Ray's metrics API to whatever scrapes the cluster (Prometheus; names get ``ray_``).

Rank 0 tells them. Ray exports every 10 seconds or so, and adds the labels that tell runs apart (job, worker); these
figures are for watching: the account of a run is its metrics.jsonl.
"""

from __future__ import annotations

from xmodal_dist import runtime

__all__ = ["TrainTelemetry", "train_telemetry"]

_PREFIX = "xmodal_train_"


class TrainTelemetry:
    """How far a run is, and how well it goes."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge

        self._starts = Counter(f"{_PREFIX}starts", "Attempts of runs that began, resumed ones included")
        self._records = Counter(f"{_PREFIX}records", "Records trained on, of whole epochs")
        self._workers = Gauge(f"{_PREFIX}workers", "Workers of the attempt")
        self._epochs = Gauge(f"{_PREFIX}epochs", "Epochs that the run is to have")
        self._epoch = Gauge(f"{_PREFIX}epochs_done", "Epochs done")
        self._step = Gauge(f"{_PREFIX}steps_done", "Global steps done")
        self._rate = Gauge(
            f"{_PREFIX}records_per_second", "Records a second since the attempt began to train"
        )
        self._loss = Gauge(f"{_PREFIX}loss", "Loss of rank 0's share of the last step that was logged")
        self._val_loss = Gauge(f"{_PREFIX}validation_loss", "Loss over the val split after the last epoch")
        self._learning_rate = Gauge(f"{_PREFIX}learning_rate", "Learning rate")
        self._wait = Gauge(
            f"{_PREFIX}wait_for_data_share",
            "Share of the last epoch in which a worker waited for data, 0 to 1",
        )

    def start(self, *, workers: int, epochs: int, epoch: int) -> None:
        """An attempt begins after ``epoch`` epochs."""
        self._starts.inc()
        self._workers.set(workers)
        self._epochs.set(epochs)
        self._epoch.set(epoch)

    def step(self, *, step: int, loss: float, learning_rate: float, records_per_s: float) -> None:
        """A step that is logged."""
        self._step.set(step)
        self._loss.set(loss)
        self._learning_rate.set(learning_rate)
        self._rate.set(records_per_s)

    def epoch(self, *, epoch: int, records: int, wait_for_data_share: float, val_loss: float | None) -> None:
        """The end of an epoch, the ``epoch``-th; ``val_loss`` is None without a val split."""
        self._epoch.set(epoch)
        self._wait.set(wait_for_data_share)
        if records:  # Ray's counters refuse zero
            self._records.inc(records)
        if val_loss is not None:
            self._val_loss.set(val_loss)


def train_telemetry() -> TrainTelemetry | None:
    """Of rank 0; None outside Ray."""
    return TrainTelemetry() if runtime.is_connected() else None
