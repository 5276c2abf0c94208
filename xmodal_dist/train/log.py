"""What a run tells while it trains: metrics.jsonl, always, TensorBoard events, and Ray's metrics. Rank 0 alone does."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from xmodal_dist import storage
from xmodal_dist.train.checkpoint import Progress
from xmodal_dist.train.telemetry import train_telemetry

__all__ = ["METRICS_NAME", "MetricsLog", "read_epochs", "read_metrics"]

METRICS_NAME = "metrics.jsonl"


def read_metrics(run: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line that is still being written is left out."""
    path = storage.join(run, METRICS_NAME)
    if not storage.exists(path):
        return []
    lines = storage.read_text(path).split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


def read_epochs(run: str) -> list[dict[str, Any]]:
    """Of these the lines with event ``epoch``, in order."""
    return [line for line in read_metrics(run) if line["event"] == "epoch"]


class MetricsLog:
    """Lines in order; after a restart, what lies beyond the checkpoint is taken back."""

    def __init__(self, run: str, rank: int, global_step: int) -> None:
        self._run, self._active = run, rank == 0
        self._began_s = time.time()
        if not self._active:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._lines = [line for line in read_metrics(run) if line.get("step", 0) <= global_step]
        self._elapsed_s = max((line["time_s"] for line in self._lines), default=0.0)
        self._flush()
        self._events = storage.join(run, "tensorboard")
        self._local = self._events if storage.is_local(run) else tempfile.mkdtemp(prefix="tensorboard-")
        self._writer = SummaryWriter(self._local, purge_step=global_step)
        self._telemetry = train_telemetry()

    def start(
        self,
        progress: Progress,
        workers: Sequence[dict[str, Any]],
        steps: int,
        epochs: int,
        launched_s: float,
    ) -> None:
        """The beginning of an attempt of the command that began at ``launched_s`` (time.time())."""
        if not self._active:
            return
        if self._telemetry is not None:
            self._telemetry.start(workers=len(workers), epochs=epochs, epoch=progress.epoch)
        self._add(
            {
                "event": "start",
                "epoch": progress.epoch,
                "step": progress.global_step,
                "steps_per_epoch": steps,
                "epochs": epochs,
                "launched_s": launched_s,
                "workers": list(workers),
            }
        )

    def step(self, progress: Progress, loss: float, learning_rate: float, records_per_s: float) -> None:
        """One logged step; ``loss`` is rank 0's share of the batch."""
        if not self._active:
            return
        self._scalars(progress.global_step, {"train/loss": loss, "train/learning_rate": learning_rate})
        if self._telemetry is not None:
            self._telemetry.step(
                step=progress.global_step, loss=loss, learning_rate=learning_rate, records_per_s=records_per_s
            )
        self._add(
            {
                "event": "step",
                "epoch": progress.epoch,
                "step": progress.global_step,
                "loss": loss,
                "learning_rate": learning_rate,
                "records_per_s": records_per_s,
            }
        )

    def epoch(
        self,
        epoch: int,
        step: int,
        train_loss: float,
        metrics: dict[str, Any],
        kept: bool,
        records: int,
        timing: dict[str, Any],
    ) -> None:
        """The end of an epoch.

        Args:
            epoch: from 0.
            step: global steps done.
            train_loss: mean over the epoch's records.
            metrics: of the val split, {} without one.
            kept: whether its weights are those to keep, so far.
            records: records used.
            timing: of :func:`xmodal_dist.train.goodput.epoch_figures`.
        """
        if not self._active:
            return
        values = {f"val_{name}": value for name, value in metrics.items()}
        self._scalars(step, {"train/epoch_loss": train_loss, **{f"val/{k}": v for k, v in metrics.items()}})
        share = timing["wait_for_data_s"] / max(timing["wall_s"], 1e-9)
        if self._telemetry is not None:
            self._telemetry.epoch(
                epoch=epoch + 1, records=records, wait_for_data_share=share, val_loss=metrics.get("loss")
            )
        self._scalars(
            step,
            {
                "goodput/records_per_s": timing["records_per_s"],
                "goodput/wait_for_data_share": share,
                **{f"goodput_s/{name}": value for name, value in timing["stages_s"].items()},
            },
        )
        self._add(
            {
                "event": "epoch",
                "epoch": epoch,
                "step": step,
                "train_loss": train_loss,
                "records": records,
                "records_per_s": timing["records_per_s"],
                "wait_for_data_s": timing["wait_for_data_s"],
                "kept": kept,
                **values,
            }
        )
        self._sync_events()

    def document(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the run."""
        storage.write_bytes(storage.join(self._run, name), (json.dumps(content, indent=1) + "\n").encode())

    def close(self) -> None:
        """Flush everything."""
        if self._active:
            self._writer.close()
            self._flush()
            self._sync_events()

    def _add(self, line: dict[str, Any]) -> None:
        line["time_s"] = round(self._elapsed_s + time.time() - self._began_s, 3)
        self._lines.append(line)
        if not storage.is_local(self._run):
            if line["event"] == "epoch":
                self._flush()
            return
        with open(storage.join(self._run, METRICS_NAME), "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")

    def _flush(self) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        storage.write_bytes(storage.join(self._run, METRICS_NAME), text.encode())

    def _scalars(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def _sync_events(self) -> None:
        """Copy event files to where the run is, if that is not this disk."""
        if self._local == self._events:
            return
        self._writer.flush()
        for name in os.listdir(self._local):
            with open(os.path.join(self._local, name), "rb") as handle:
                storage.write_bytes(storage.join(self._events, name), handle.read())
