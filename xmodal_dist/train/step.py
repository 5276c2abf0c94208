"""One optimizer step over this rank's share of a global batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from xmodal_dist.batch import Batch
from xmodal_dist.modalities.fields import transform
from xmodal_dist.model.classifier import Output
from xmodal_dist.model.losses import LossSum, classification_loss
from xmodal_dist.model.mixup import draw_shares
from xmodal_dist.train.balance import Balance
from xmodal_dist.train.gradients import accumulate, accumulate_by_lane, pieces
from xmodal_dist.train.job import TrainJob
from xmodal_dist.train.optim import set_learning_rate
from xmodal_dist.train.stopwatch import Stopwatch

__all__ = ["OneStep", "StepSums", "optimizer_step"]


class OneStep(NamedTuple):
    """Sums over one rank's rows of one step, scalars: loss of the fused logits, weight, rows used, rows rejected."""

    loss: torch.Tensor
    weight: torch.Tensor
    used: torch.Tensor
    rejected: torch.Tensor

    def mean_loss(self) -> float:
        """Mean loss of this rank's rows."""
        return float(self.loss / self.weight.clamp(min=1e-12))


class StepSums:
    """Sums over the steps since they were last taken; ``records`` counts all rows used on all ranks."""

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(4, dtype=dtype, device=device)
        self.records = 0

    def add(self, step: OneStep) -> None:
        """Add one step."""
        self._sums += torch.stack([v.to(self._sums.dtype) for v in step])

    def take(self, num_workers: int) -> tuple[float, float, float, float]:
        """Loss, weight, rows used and rows rejected over all ranks, and start again from 0."""
        if num_workers > 1:
            dist.all_reduce(self._sums)
        loss, weight, used, rejected = self._sums.tolist()
        self.records += int(used)
        self._sums.zero_()
        return loss, weight, used, rejected


def optimizer_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    job: TrainJob,
    learning_rate: float,
    num_workers: int,
    watch: Stopwatch,
) -> OneStep:
    """Forward, backward and update.

    The loss of a step is the weighted mean over the *global* batch: each rank divides its sum by the global weight, and
    multiplies by the number of ranks where DDP averages gradients. Micro-batches add up to the same gradient.
    """
    train, device = job.train, batch.labels.device
    batch = _weighted(batch, job)
    # Exact in float64, so equal on any number of workers.
    weight = batch.weights.double().sum()
    global_weight = weight.clone()
    if num_workers > 1:
        with watch.stage("synchronise"):
            dist.all_reduce(global_weight)
    by_lane = train.adds_lane_by_lane(device.type)
    scale = (1 if by_lane else num_workers) / global_weight.clamp(min=1e-12).float()
    loss_sum = torch.zeros((), device=device)
    balance = Balance(job.model, len(job.specs), device, job.task)
    outcome_weights = _on_device(job.outcome_weights, device)

    def backward(rows: slice) -> None:
        part = _rows(batch, rows)
        with watch.stage("forward"):
            output = _forward(model, part, job)
            loss = _loss(output, part, job, outcome_weights)
            balance.add(output.field_logits, part)
        with watch.stage("backward"):
            (loss.total * scale).backward()  # type: ignore[no-untyped-call]
        loss_sum.add_(loss.fused.detach())

    if by_lane:
        size = train.batch_size // train.lanes
        lanes = [pieces(slice(at, at + size), train.micro_batch_rows) for at in range(0, len(batch), size)]
        accumulate_by_lane(model, lanes, backward, num_workers, watch)
    else:
        accumulate(model, pieces(slice(0, len(batch)), train.micro_batch_rows), backward)
    with watch.stage("optimizer"):
        set_learning_rate(optimizer, learning_rate)
        if train.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm)
        with balance.slowed(model, num_workers):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    # Positions go to the device, not labels from it: that would wait for the whole step.
    real = (batch.ids >= 0).to(device, non_blocking=True)
    rejected = real & ~job.task.labelled(batch.labels)
    return OneStep(loss_sum, weight, (real & ~rejected).sum(), rejected.sum())


def _forward(model: nn.Module, batch: Batch, job: TrainJob) -> Output:
    device, alpha = batch.labels.device, job.train.mixup_alpha
    batch = transform(job.specs, batch, augment=True)
    share = draw_shares(batch.keys, job.task.labelled(batch.labels), alpha) if alpha else None
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=_bfloat16(job, device)):
        output: Output = model(batch.inputs, batch.present, batch.keys, share)
    return output


def _loss(output: Output, batch: Batch, job: TrainJob, outcome_weights: torch.Tensor | None) -> LossSum:
    """Sums of the rows' losses."""
    train = job.train
    return classification_loss(
        output.fused,
        output.field_logits,
        batch.present,
        batch.labels,
        batch.weights,
        shares=output.shares,
        label_smoothing=train.label_smoothing,
        focal_gamma=train.focal_gamma if train.loss == "focal" else 0.0,
        aux_weight=job.model.aux_weight,
        task=job.task,
        outcome_weights=outcome_weights,
    )


def _bfloat16(job: TrainJob, device: torch.device) -> bool:
    if job.train.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return job.train.precision == "bfloat16"


def _weighted(batch: Batch, job: TrainJob) -> Batch:
    """The batch with its classes' weights in those of its rows."""
    by_class = _on_device(job.class_weights, batch.labels.device)
    if by_class is None:
        return batch
    return replace(batch, weights=batch.weights * by_class[batch.labels.clamp(min=0)])


def _on_device(weights: list[Any] | None, device: torch.device) -> torch.Tensor | None:
    """As float32, without waiting for the device."""
    return None if weights is None else torch.tensor(weights).to(device, non_blocking=True)


def _rows(batch: Batch, rows: slice) -> Batch:
    """Some rows, in memory of their own: kernels add up in another order where memory is aligned otherwise."""
    part = batch.slice(rows.start, rows.stop)
    return part.with_inputs(
        {f: {name: t.clone() for name, t in tensors.items()} for f, tensors in part.inputs.items()}
    )
