"""A defence against one field drowning the others: on-the-fly gradient modulation (Peng et al. 2022, arXiv:2203.15332).

A field that learns fast soon explains the labels, and the others get no gradient to learn from. The field's discrepancy
r is the mean probability that its own head gives to the true class (or classes) in this step, over the mean of that of
the other fields. Where r is above 1, its encoder is slowed by the factor 1 - tanh(alpha (r - 1)).

Where this differs from the paper, it is for a reason. There, r is of two fields, and the factor is 1 - tanh(alpha r),
which jumps at r = 1. There, the factor multiplies gradients of SGD; AdamW divides a gradient by its own size and would
undo it, so here it multiplies the update, which is the same for SGD. The noise that the paper adds is left out.

Nothing is carried from step to step, so there is nothing to save; probabilities are added as integers, so that the
factors are equal on any number of workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from xmodal_dist.batch import Batch
from xmodal_dist.model.classifier import CrossModalClassifier, ModelSettings
from xmodal_dist.task import MULTICLASS, Task

__all__ = ["Balance"]

_UNIT = 2.0**24
"""A probability in float32 times this is a whole number, but for rounding below float32's own."""


class Balance:
    """How far each field is ahead of the others in one step, and what follows for the update of its encoder.

    Args:
        settings: ``balance`` and ``balance_alpha``.
        num_fields: M.
        device: that of the batches.
        task: what their labels are.
    """

    def __init__(
        self, settings: ModelSettings, num_fields: int, device: torch.device, task: Task = MULTICLASS
    ) -> None:
        self._task = task
        self._active = settings.balance != "none" and num_fields > 1
        self._alpha = settings.balance_alpha
        self._sums = torch.zeros(2, num_fields, dtype=torch.int64, device=device)

    def add(self, field_logits: torch.Tensor, batch: Batch) -> None:
        """Count some rows: ``field_logits`` [B, M, C]."""
        if not self._active:
            return
        with torch.no_grad():
            probabilities, usable = self._task.truth_probability(field_logits.detach(), batch.labels)
            counted = batch.present & usable[:, None]
            units = (probabilities * _UNIT).round().to(torch.int64) * counted
            self._sums += torch.stack([units.sum(dim=0), counted.sum(dim=0)])

    def factors(self, num_workers: int) -> torch.Tensor:
        """[M] float32 in (0, 1] of the rows counted on all ranks; 1 for a field that no row has."""
        if num_workers > 1:
            dist.all_reduce(self._sums)
        units, rows = self._sums.float()
        there = rows > 0
        means = units / rows.clamp(min=1) / _UNIT
        others = (there.sum() - there.to(means.dtype)).clamp(min=1)
        ahead = means * others / (means.sum() - means).clamp(min=1e-6)
        ahead = torch.where(there & (there.sum() > 1), ahead, 1.0)
        return 1 - torch.tanh(self._alpha * (ahead - 1).clamp(min=0))

    @contextlib.contextmanager
    def slowed(self, model: nn.Module, num_workers: int) -> Iterator[None]:
        """Of what the block does to the encoders' parameters, keep the share that is each one's factor."""
        if not self._active:
            yield
            return
        factors = self.factors(num_workers)
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        encoders = cast(CrossModalClassifier, inner).encoder_parameters()
        before = [[p.detach().clone() for p in parameters] for parameters in encoders]
        yield
        with torch.no_grad():
            for factor, parameters, old in zip(factors, encoders, before, strict=True):
                for parameter, start in zip(parameters, old, strict=True):
                    parameter.copy_(torch.lerp(start, parameter, factor))
