"""Validation during training, exact on any number of workers: sums are reduced, never averages of averages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

from xmodal_dist.batch import Batch
from xmodal_dist.errors import XmodalError
from xmodal_dist.metrics import from_confusion
from xmodal_dist.modalities.fields import FieldSpec, transform
from xmodal_dist.model.classifier import CrossModalClassifier
from xmodal_dist.multilabel import from_outcomes, ranked_precision
from xmodal_dist.task import MULTICLASS, MULTILABEL, Task
from xmodal_dist.train.gradients import pieces
from xmodal_dist.train.settings import LOWER_IS_BETTER

__all__ = ["LabelSetTotals", "Totals", "monitored", "totals"]

_INVERSE_TEMPERATURES = [2.0 ** (k / 4) for k in range(-12, 13)]
_AT_ONE = _INVERSE_TEMPERATURES.index(1.0)
_BINS, _BINS_PER_NAT = 4096, 128
"""Scores are told apart to 1/128 of a logit, within 16 of 0."""


class _Totals(Protocol):
    def add(self, model: CrossModalClassifier, specs: Sequence[FieldSpec], batch: Batch) -> None: ...
    def add_said(self, logits: torch.Tensor, labels: torch.Tensor) -> None: ...
    def reduce(self, num_workers: int, rows: int) -> dict[str, Any]: ...


def totals(task: Task, num_classes: int, device: torch.device, rows_at_once: int | None) -> _Totals:
    """What validation of a task adds up; ``rows_at_once`` as in :class:`LabelSetTotals`."""
    if task is MULTICLASS:
        return Totals(num_classes, device)
    return LabelSetTotals(num_classes, device, rows_at_once)


class Totals:
    """Confusion matrix, and loss sums at several temperatures, of this rank's validation records."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self._losses = torch.zeros(2, len(_INVERSE_TEMPERATURES), dtype=torch.float64, device=device)
        self._rejected = torch.zeros((), dtype=torch.int64, device=device)

    @torch.inference_mode()
    def add(self, model: CrossModalClassifier, specs: Sequence[FieldSpec], batch: Batch) -> None:
        """Add a batch; padding is left out, rejected records count as neither right nor wrong."""
        batch = transform(specs, batch, augment=False)
        logits = model(batch.inputs, batch.present).fused.float()
        real = batch.labels >= 0
        self.add_said(logits[real], batch.labels[real])
        self._rejected += int((batch.ids >= 0).sum()) - real.sum()

    def add_said(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add what a model said, [n, C], of records with these labels, [n]."""
        cells = labels * len(self._confusion) + logits.argmax(dim=1)
        counts = torch.bincount(cells, minlength=self._confusion.numel())
        self._confusion += counts.view_as(self._confusion)
        for place, inverse in enumerate(_INVERSE_TEMPERATURES):
            losses = F.cross_entropy(logits * inverse, labels, reduction="none").double()
            self._losses[:, place] += torch.stack([losses.sum(), losses.square().sum()])

    def reduce(self, num_workers: int, rows: int) -> dict[str, Any]:
        """Metrics over all ranks.

        Args:
            num_workers: number of ranks.
            rows: records of the split; checked against what was seen.

        Returns:
            ``loss`` (mean cross-entropy, nats), ``calibrated_loss`` (the same at the temperature that makes it lowest,
            of a grid of steps of 2^(1/4) from 1/8 to 8), the standard errors of both (``loss_error``,
            ``calibrated_loss_error``), ``rows``, ``rows_rejected`` and those of
            :func:`xmodal_dist.metrics.from_confusion`.
        """
        if num_workers > 1:
            dist.all_reduce(self._confusion)
            dist.all_reduce(self._losses)
            dist.all_reduce(self._rejected)
        seen, rejected = int(self._confusion.sum()), int(self._rejected)
        _check_rows(seen, rejected, rows)
        means, squares = (self._losses / max(seen, 1)).tolist()
        lowest = means.index(min(means))

        def error(place: int) -> float:
            return math.sqrt(max(squares[place] - means[place] ** 2, 0.0) / max(seen, 1))

        return {
            "rows": seen,
            "rows_rejected": rejected,
            "loss": means[_AT_ONE],
            "loss_error": error(_AT_ONE),
            "calibrated_loss": means[lowest],
            "calibrated_loss_error": error(lowest),
            **from_confusion(self._confusion.cpu().numpy()),
        }


class LabelSetTotals:
    """Counts by class, outcome and score, and loss sum, of this rank's validation records of a multilabel task.

    Average precision needs only the order of the scores, and counts by score add up exactly over ranks, whatever their
    number; scores are logits, rounded to 1/128.

    Args:
        num_classes: C.
        device: that of the batches.
        rows_at_once: rows that the network is given at once; None gives it whole batches. Kernels round in another way
            for other shapes, so this makes the figures the same on any number of ranks.
    """

    def __init__(self, num_classes: int, device: torch.device, rows_at_once: int | None = None) -> None:
        self._rows_at_once = rows_at_once
        self._counts = torch.zeros(2 * num_classes * _BINS, dtype=torch.int64, device=device)
        # Loss, whole sets that are right, rows, rejected.
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._offsets = torch.arange(num_classes, device=device) * _BINS

    @torch.inference_mode()
    def add(self, model: CrossModalClassifier, specs: Sequence[FieldSpec], batch: Batch) -> None:
        """Add a batch; padding is left out, rejected records count as neither right nor wrong."""
        for part in pieces(slice(0, len(batch)), self._rows_at_once):
            rows = transform(specs, batch.slice(part.start, part.stop), augment=False)
            real = MULTILABEL.labelled(rows.labels)
            self.add_said(model(rows.inputs, rows.present).fused.float()[real], rows.labels[real])
            self._sums[3] += float((rows.ids >= 0).sum()) - float(real.sum())

    def add_said(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add what a model said, [n, C], of records with these labels, [n, C]."""
        labels = labels.to(torch.int64)
        # The middle bin begins at 0. A model that has diverged is told so by its loss.
        bins = (logits.nan_to_num() * _BINS_PER_NAT).floor() + _BINS // 2
        bins = bins.clamp(0, _BINS - 1).to(torch.int64)
        cells = (labels * (len(self._counts) // 2) + self._offsets + bins).flatten()
        self._counts.index_add_(0, cells, torch.ones_like(cells))
        right = ((logits >= 0) == (labels > 0)).all(dim=1)
        self._sums[0] += MULTILABEL.losses(logits, labels).double().sum()
        self._sums[1] += right.sum()
        self._sums[2] += len(labels)

    def reduce(self, num_workers: int, rows: int) -> dict[str, Any]:
        """Metrics over all ranks; arguments as in :meth:`Totals.reduce`.

        Returns:
            ``rows``, ``rows_rejected``, ``loss`` (mean binary cross-entropy summed over classes, nats),
            ``mean_average_precision`` (over the classes with records that have them; 0 without any), and at a
            probability of 1/2 ``subset_accuracy`` and those of :func:`xmodal_dist.multilabel.from_outcomes`.
        """
        if num_workers > 1:
            dist.all_reduce(self._counts)
            dist.all_reduce(self._sums)
        loss, right, seen, rejected = self._sums.tolist()
        _check_rows(int(seen), int(rejected), rows)
        without, having = self._counts.view(2, -1, _BINS).cpu().numpy()
        precisions = ranked_precision(having, without)
        said, hits = without[:, _BINS // 2 :].sum(axis=1), having[:, _BINS // 2 :].sum(axis=1)
        supported = having.any(axis=1)
        return {
            "rows": int(seen),
            "rows_rejected": int(rejected),
            "loss": loss / max(seen, 1),
            "mean_average_precision": float(precisions[supported].mean()) if supported.any() else 0.0,
            **from_outcomes(np.stack([hits, having.sum(axis=1), hits + said])),
            "subset_accuracy": right / max(seen, 1),
        }


def monitored(metrics: Mapping[str, Any], train_loss: float, monitor: str) -> tuple[float, float]:
    """The figure to maximise and its standard error, 0 where it has none; without a val split, the training loss."""
    if not metrics:
        return -train_loss, 0.0
    value = -float(metrics[monitor]) if monitor in LOWER_IS_BETTER else float(metrics[monitor])
    return value, float(metrics.get(f"{monitor}_error", 0.0))


def _check_rows(seen: int, rejected: int, rows: int) -> None:
    if seen + rejected != rows:
        raise XmodalError(
            f"validation saw {seen} + {rejected} records of {rows}: please report this as a bug"
        )
