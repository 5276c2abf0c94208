"""Settings of a training run."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from xmodal_dist.errors import UsageError
from xmodal_dist.settings import Settings
from xmodal_dist.task import MULTICLASS, TaskName

__all__ = ["LOWER_IS_BETTER", "TrainSettings"]

LOWER_IS_BETTER = ("calibrated_loss", "loss")
"""Validation figures of which less is better."""

_NOT_RESULT_CHANGING = {
    "num_workers", "min_workers", "resize_interval_s", "max_failures", "checkpoint_every_steps", "keep_checkpoints",
    "log_every_steps", "micro_batch_rows", "collective_timeout_s",
}  # fmt: skip

_MONITORS = {
    "multiclass": ("calibrated_loss", "loss", "accuracy", "macro_f1"),
    "multilabel": ("loss", "mean_average_precision", "micro_f1", "macro_f1", "subset_accuracy"),
}
_MULTILABEL_DEFAULTS = {"monitor": "mean_average_precision"}


class TrainSettings(Settings):
    """How a run trains. All sizes are global: none depends on the number of workers.

    Attributes:
        num_workers: DDP workers; None takes one per GPU, or 2 on CPUs.
        min_workers: makes the run elastic: it starts with as many workers as the cluster can hold now, from this number
            to ``num_workers``, and goes on with fewer or more as nodes leave or join, from the newest checkpoint; below
            this number it waits for nodes. None keeps ``num_workers``. On CPUs each worker then takes a whole one, and
            reads by itself (``pipeline.placement: local``).
        resize_interval_s: an elastic run looks for room for more workers at most so often.
        seed: seed of the order of records, of augmentation, dropout and initial weights.
        epochs: passes over the train split.
        batch_size: records in one optimizer step, over all workers; a multiple of ``lanes``.
        lanes: fixed reading lanes; at least the number of workers, also of those that resume the run.
        micro_batch_rows: rows that a worker takes through the network at once; gradients of a step are accumulated over
            as many micro-batches as it needs. None takes its whole share.
        gradient_order: ``lanes`` adds gradients lane by lane, in sums that know no order, so that any number of workers
            ends with equal weights, to the bit; ``fast`` leaves the order to DDP; ``auto`` is ``lanes`` on CPUs, where
            it costs about a sixth of the step, and ``fast`` on accelerators.
        learning_rate: peak of AdamW's learning rate, reached after the warm-up and then annealed by a cosine to 0.
        warmup_fraction: share of all steps in which the learning rate rises linearly from 0.
        weight_decay: AdamW's, on matrices only.
        clip_norm: bound of the gradient's global norm; 0 turns clipping off.
        label_smoothing: share of the target spread over all classes, of multilabel over having a class and not.
        loss: ``cross_entropy`` (of multilabel the binary one, summed over classes); ``focal`` (Lin et al. 2017) gives
            less to records that are right already; ``class_balanced`` (Cui et al. 2019) weighs classes by their
            effective number of records.
        focal_gamma: how much less ``focal`` gives them; 0 is the cross-entropy.
        class_balanced_beta: near 0 counts classes alike, near 1 by the inverse of their records.
        class_weights: ``balanced`` weighs classes by N / (C n_c); of multilabel, having a class by (N - n_c) / n_c.
        mixup_alpha: mixes the features of neighbours in a lane, and their targets, in shares from Beta(alpha, alpha)
            (Zhang et al. 2018); 0 turns it off.
        ema_decay: validation and the bundle take an exponential moving average of the weights with this decay a step,
            shorter in the first steps; 0 takes the weights themselves.
        monitor: validation figure that chooses the epoch to keep and stops early: the latest epoch within a standard
            error of the best, of figures without an error of equal ones the latest. By default the loss at the best
            temperature, since the model is calibrated afterwards; of multilabel ``mean_average_precision``.
        patience_epochs: stop after this many epochs without a better one; 0 never stops early.
        precision: ``auto`` takes bfloat16 where the accelerator has it, else float32.
        checkpoint_every_steps: a checkpoint at every so many global steps, besides each epoch's; 0 for none.
        keep_checkpoints: newest checkpoints kept, besides the best epoch's; at least 2.
        log_every_steps: a line in metrics.jsonl at every so many steps.
        max_failures: restarts after lost workers before the run fails.
        max_bad_fraction: share of a split's records that may fail to decode before the run fails.
        fit_rows: rows of the train split from which vocabularies and statistics are learned.
        collective_timeout_s: a worker that waits longer than this for the others fails the attempt.
    """

    num_workers: int | None = Field(default=None, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    resize_interval_s: float = Field(default=60.0, gt=0)
    seed: int = 0
    epochs: int = Field(default=16, ge=1)
    batch_size: int = Field(default=64, ge=1)
    lanes: int = Field(default=8, ge=1)
    micro_batch_rows: int | None = Field(default=None, ge=1)
    gradient_order: Literal["auto", "lanes", "fast"] = "auto"
    learning_rate: float = Field(default=2e-3, gt=0)
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_norm: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    loss: Literal["cross_entropy", "focal", "class_balanced"] = "cross_entropy"
    focal_gamma: float = Field(default=2.0, ge=0)
    class_balanced_beta: float = Field(default=0.999, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"
    mixup_alpha: float = Field(default=0.0, ge=0, le=1)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    monitor: Literal[
        "calibrated_loss",
        "loss",
        "accuracy",
        "macro_f1",
        "mean_average_precision",
        "micro_f1",
        "subset_accuracy",
    ] = "calibrated_loss"
    patience_epochs: int = Field(default=0, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_every_steps: int = Field(default=0, ge=0)
    keep_checkpoints: int = Field(default=2, ge=2)
    log_every_steps: int = Field(default=10, ge=1)
    max_failures: int = Field(default=3, ge=0)
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    fit_rows: int = Field(default=20_000, ge=1)
    collective_timeout_s: int = Field(default=600, ge=1)

    @property
    def warmup_epochs(self) -> int:
        """Epochs in which the learning rate still rises, at least 1."""
        return max(1, math.ceil(self.warmup_fraction * self.epochs))

    def for_task(self, task: TaskName) -> TrainSettings:
        """The settings with the task's defaults in place of those that nobody set.

        Raises:
            UsageError: the task has no such figure to monitor.
        """
        if task == MULTICLASS.name:
            settings = self
        else:
            unset = {k: v for k, v in _MULTILABEL_DEFAULTS.items() if k not in self.model_fields_set}
            settings = self.model_copy(update=unset)
        if settings.monitor not in _MONITORS[task]:
            raise UsageError(
                f"train.monitor={settings.monitor}: the dataset is {task}, whose validation has no such figure; "
                f"choose one of {', '.join(_MONITORS[task])}"
            )
        return settings

    def check(self, num_workers: int, window_rows: int) -> None:
        """Raise :class:`UsageError` where sizes do not fit each other."""
        if self.batch_size % self.lanes:
            raise UsageError(
                f"train.batch_size={self.batch_size} is not a multiple of train.lanes={self.lanes}; "
                f"change either, for example train.batch_size={-(-self.batch_size // self.lanes) * self.lanes}"
            )
        if num_workers > self.lanes:
            raise UsageError(
                f"{num_workers} workers need at least as many lanes; set train.lanes to {num_workers} or more "
                f"(now {self.lanes}) and train.batch_size to a multiple of it"
            )
        if self.min_workers is not None and self.num_workers is None:
            raise UsageError(
                f"train.min_workers={self.min_workers} needs train.num_workers, the most that the run may grow to"
            )
        if self.min_workers is not None and self.min_workers > num_workers:
            raise UsageError(
                f"train.min_workers={self.min_workers} is more than train.num_workers={num_workers}; change either"
            )
        if self.loss == "class_balanced" and self.class_weights != "none":
            raise UsageError(
                "train.loss=class_balanced and train.class_weights=balanced would weigh classes twice; "
                "set train.class_weights to none"
            )
        if self.mixup_alpha:
            self._check_pairs()
        if window_rows < 1:
            raise UsageError(f"pipeline.window_rows={window_rows} must be at least 1")

    def _check_pairs(self) -> None:
        """Mixup mixes neighbours in a lane: no lane's part of a step, and no micro-batch, may part them."""
        if self.batch_size // self.lanes % 2:
            raise UsageError(
                f"train.mixup_alpha mixes pairs of records of a lane, but train.batch_size={self.batch_size} over "
                f"train.lanes={self.lanes} gives a lane {self.batch_size // self.lanes} in each step, which is odd; "
                f"set train.batch_size to a multiple of {2 * self.lanes}"
            )
        if self.micro_batch_rows is not None and self.micro_batch_rows % 2:
            raise UsageError(
                f"train.mixup_alpha mixes pairs of records, which train.micro_batch_rows={self.micro_batch_rows} "
                f"would part; set it to an even number"
            )

    def adds_lane_by_lane(self, device_type: str) -> bool:
        """Whether gradients are added in a fixed order on a device of this type."""
        return self.gradient_order == "lanes" or (self.gradient_order == "auto" and device_type == "cpu")

    def identity(self) -> dict[str, Any]:
        """The settings that change the result: a resumed run must have the same."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in _NOT_RESULT_CHANGING}
