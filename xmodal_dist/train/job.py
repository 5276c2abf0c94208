"""What a training run is, as every worker receives it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from xmodal_dist import storage
from xmodal_dist.bundle import build_model
from xmodal_dist.dataset.manifest import Manifest
from xmodal_dist.dataset.order import OrderQuality
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.model.classifier import CrossModalClassifier, ModelSettings
from xmodal_dist.model.losses import class_balanced_weights, outcome_weights
from xmodal_dist.pipeline.chunks import Schedule
from xmodal_dist.pipeline.reader import ChunkReader
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.profile import Profile
from xmodal_dist.task import MULTICLASS, MULTILABEL, Task, task_of
from xmodal_dist.train.settings import TrainSettings

__all__ = ["TrainJob"]


@dataclass(frozen=True)
class TrainJob:
    """A run: data, model and settings, and where it writes.

    Attributes:
        run: path or URI of the run directory.
        dataset: path or URI of the packed dataset.
        manifest: its manifest.
        specs: the fields, fitted.
        model: settings of the model.
        train: settings of the training.
        pipeline: settings of the reading.
        worker_cpus: CPUs that each worker holds.
        reader_cpus: CPUs for the Ray Data tasks of each worker.
        use_gpu: whether each worker has a GPU.
        started_s: time.time() of the command, for the start-up share.
        order: how well mixed its batches are; None before that is measured.
        profile: what the training data looks like; None before it is looked at.
    """

    run: str
    dataset: str
    manifest: Manifest
    specs: tuple[FieldSpec, ...]
    model: ModelSettings
    train: TrainSettings
    pipeline: PipelineSettings
    worker_cpus: float
    reader_cpus: float
    use_gpu: bool
    started_s: float
    order: OrderQuality | None = None
    profile: Profile | None = None

    @property
    def task(self) -> Task:
        """What the labels are."""
        return task_of(self.manifest.task)

    @property
    def checkpoints(self) -> str:
        """Directory of the checkpoints."""
        return storage.join(self.run, "checkpoints")

    @property
    def bundle(self) -> str:
        """Directory of the bundle that training ends in."""
        return storage.join(self.run, "bundle")

    @property
    def quarantine(self) -> str:
        """Directory of the records that could not be decoded while training."""
        return storage.join(self.run, "quarantine")

    @property
    def validates(self) -> bool:
        """Whether the dataset has validation records."""
        return "val" in self.manifest.splits and self.manifest.splits["val"].rows > 0

    @cached_property
    def schedule(self) -> Schedule:
        """The order in which this run reads."""
        rows_per_lane = self.train.batch_size // self.train.lanes
        window_rows = max(1, self.pipeline.window_rows // rows_per_lane) * rows_per_lane
        return Schedule(self.manifest, self.train.seed, self.train.lanes, rows_per_lane, window_rows)

    @cached_property
    def class_weights(self) -> list[float] | None:
        """[C] the weight of each class's rows in the loss; None where all count alike, and of a multilabel task."""
        if self.task is MULTILABEL:
            return None
        summary, counts = self.manifest.splits["train"], self._class_counts
        if self.train.loss == "class_balanced":
            return class_balanced_weights(counts, self.train.class_balanced_beta)
        if self.train.class_weights == "balanced":
            return [summary.rows / (len(counts) * count) for count in counts]
        return None

    @cached_property
    def outcome_weights(self) -> list[list[float]] | None:
        """[2][C] of a multilabel task, :func:`xmodal_dist.model.losses.outcome_weights`; None where all count alike."""
        if self.task is MULTICLASS:
            return None
        return outcome_weights(
            self._class_counts,
            self.manifest.splits["train"].rows,
            balanced=self.train.class_weights == "balanced",
            beta=self.train.class_balanced_beta if self.train.loss == "class_balanced" else None,
        )

    @property
    def _class_counts(self) -> list[int]:
        counts = self.manifest.splits["train"].classes
        return [max(1, counts.get(name, 0)) for name in self.manifest.classes]

    def new_model(self) -> CrossModalClassifier:
        """The model with fresh weights; of a multilabel task it starts from the shares of the classes."""
        model = build_model(self.specs, len(self.manifest.classes), self.model)
        if self.task is MULTILABEL:
            counts = torch.tensor(self._class_counts, dtype=torch.float32)
            rows = self.manifest.splits["train"].rows
            model.start_from(torch.logit(counts / (rows + 1)))
        return model

    def reader(self, specs: tuple[FieldSpec, ...] | None = None) -> ChunkReader:
        """The reader of this run's chunks; ``specs`` are its fields as they are to be read, by default as they are."""
        return ChunkReader(self.dataset, specs or self.specs, self.schedule, self.pipeline.cache())

    def identity(self) -> dict[str, Any]:
        """Everything that changes the result; a resumed run must have the same."""
        return {
            "dataset": self.manifest.fingerprint,
            "fields": {s.name: s.settings.model_dump(mode="json") for s in self.specs},
            "model": self.model.model_dump(mode="json"),
            "train": self.train.identity(),
            "window_rows": self.pipeline.window_rows,
        }

    def config(self) -> dict[str, Any]:
        """The sections of a configuration file that give this run, defaults included."""
        return {
            "fields": {s.name: s.settings.model_dump(mode="json", exclude={"kind"}) for s in self.specs},
            "model": self.model.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json"),
            "pipeline": self.pipeline.model_dump(mode="json"),
        }

    @property
    def digest(self) -> str:
        """Hex SHA-256 of :meth:`identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
