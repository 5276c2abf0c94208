"""Validation during training, exact on any number of workers: sums are reduced, never averages of averages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from xmodal_dist.batch import Batch
from xmodal_dist.errors import XmodalError
from xmodal_dist.metrics import from_confusion
from xmodal_dist.modalities.fields import FieldSpec, transform
from xmodal_dist.model.classifier import CrossModalClassifier

__all__ = ["Totals"]


class Totals:
    """Confusion matrix and loss sum of this rank's validation records."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self._loss = torch.zeros(2, dtype=torch.float64, device=device)

    @torch.inference_mode()
    def add(self, model: CrossModalClassifier, specs: Sequence[FieldSpec], batch: Batch) -> None:
        """Add a batch; padding is left out, rejected records count as neither right nor wrong."""
        batch = transform(specs, batch, augment=False)
        logits = model(batch.inputs, batch.present).fused.float()
        real = batch.labels >= 0
        labels, logits = batch.labels[real], logits[real]
        cells = labels * len(self._confusion) + logits.argmax(dim=1)
        counts = torch.bincount(cells, minlength=self._confusion.numel())
        self._confusion += counts.view_as(self._confusion)
        self._loss[0] += F.cross_entropy(logits, labels, reduction="sum").double()
        self._loss[1] += float((batch.ids >= 0).sum()) - float(real.sum())

    def reduce(self, num_workers: int, rows: int) -> dict[str, Any]:
        """Metrics over all ranks.

        Args:
            num_workers: number of ranks.
            rows: records of the split; checked against what was seen.

        Returns:
            ``loss`` (mean cross-entropy, nats), ``rows``, ``rows_rejected`` and those of
            :func:`xmodal_dist.metrics.from_confusion`.
        """
        if num_workers > 1:
            dist.all_reduce(self._confusion)
            dist.all_reduce(self._loss)
        seen, rejected = int(self._confusion.sum()), int(self._loss[1])
        if seen + rejected != rows:
            raise XmodalError(
                f"validation saw {seen} + {rejected} records of {rows}: please report this as a bug"
            )
        return {
            "rows": seen,
            "rows_rejected": rejected,
            "loss": float(self._loss[0]) / max(seen, 1),
            **from_confusion(self._confusion.cpu().numpy()),
        }
