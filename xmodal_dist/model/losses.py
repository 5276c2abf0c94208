"""Losses as sums: divided by the sum of weights over all ranks they give the same mean on any number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from xmodal_dist.model.mixup import Shares, partners
from xmodal_dist.task import MULTICLASS, Task

__all__ = [
    "LossSum",
    "class_balanced_weights",
    "classification_loss",
    "outcome_weights",
    "weighted_cross_entropy",
]


class LossSum(NamedTuple):
    """Loss of a batch before the division by the global weight.

    Attributes:
        total: scalar, sum over rows of weight x loss: what is minimised.
        weight: scalar, sum of the rows' weights; 0 if all rows are padding.
        fused: the part of ``total`` that comes from the fused logits: what to show.
    """

    total: torch.Tensor
    weight: torch.Tensor
    fused: torch.Tensor


def class_balanced_weights(counts: Sequence[int], beta: float) -> list[float]:
    """Weights of classes by their effective number of records (Cui et al. 2019, arXiv:1901.05555), of mean 1.

    The effective number of n records is (1 - beta^n) / (1 - beta): with beta 0 all classes weigh alike, with beta
    towards 1 by 1 / n.

    Args:
        counts: [C] records of each class, at least 1.
        beta: in [0, 1).
    """
    weights = [(1 - beta) / (1 - beta**count) for count in counts]
    return [weight * len(counts) / sum(weights) for weight in weights]


def outcome_weights(
    counts: Sequence[int], rows: int, *, balanced: bool, beta: float | None
) -> list[list[float]] | None:
    """What not having and having each class counts in the loss of a multilabel task, [2][C]; None: all alike.

    Args:
        counts: [C] records of each class, at least 1.
        rows: records, N.
        balanced: having a class counts (N - n) / n times as much as not having it, so that both sides sum to the same.
        beta: both count by the class's effective number of records (:func:`class_balanced_weights`); None does not.
    """
    if beta is not None:
        weights = class_balanced_weights(counts, beta)
        return [weights, weights]
    if balanced:
        return [[1.0] * len(counts), [max(rows - count, 1) / count for count in counts]]
    return None


def weighted_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    task: Task = MULTICLASS,
    outcome_weights: torch.Tensor | None = None,
) -> LossSum:
    """Cross-entropy with label smoothing, or its focal form, summed over rows.

    Args:
        logits: [B, C].
        labels: targets of the task; the value does not matter where the weight is 0 (padding has -1).
        weights: [B], 0 = padding; of multiclass those of classes are in it.
        label_smoothing: as in :meth:`xmodal_dist.task.Task.losses`, like the other arguments.
        focal_gamma: at least 0.
        task: what the labels are.
        outcome_weights: [2, C] of multilabel.
    """
    losses = task.losses(logits, labels, label_smoothing, focal_gamma, outcome_weights)
    total = (losses * weights).sum()
    return LossSum(total, weights.sum(), total)


def classification_loss(
    fused: torch.Tensor,
    field_logits: torch.Tensor,
    present: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    *,
    shares: Shares | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    aux_weight: float = 0.0,
    task: Task = MULTICLASS,
    outcome_weights: torch.Tensor | None = None,
) -> LossSum:
    """Loss of the fused logits plus ``aux_weight`` times the sum of the present fields' own losses.

    Args:
        fused: [B, C].
        field_logits: [B, M, C].
        present: [B, M] bool.
        labels: targets of the task, -1 where the weight is 0.
        weights: [B], 0 = padding; of multiclass those of classes are in it.
        shares: of rows that were mixed with their partners; the loss is then that of the own label times its share plus
            that of the partner's label times the rest (Zhang et al. 2018), all with the row's own weight.
        label_smoothing: as in :func:`weighted_cross_entropy`.
        focal_gamma: as in :func:`weighted_cross_entropy`.
        aux_weight: 0 still sends a (zero) gradient to every parameter, as DDP needs.
        task: what the labels are.
        outcome_weights: as in :func:`weighted_cross_entropy`.

    Returns:
        The sum of both parts and the weight of the fused part.
    """
    num_fields = present.shape[1]

    def loss(labels: torch.Tensor, of_fused: torch.Tensor, of_fields: torch.Tensor) -> LossSum:
        how = (label_smoothing, focal_gamma, task, outcome_weights)
        main = weighted_cross_entropy(fused, labels, of_fused, *how)
        repeated = labels.repeat_interleave(num_fields, dim=0)
        aux = weighted_cross_entropy(field_logits.flatten(0, 1), repeated, of_fields.flatten(), *how)
        return LossSum(main.total + aux_weight * aux.total, main.weight, main.total)

    field_weights = weights[:, None] * present
    if shares is None:
        return loss(labels, weights, field_weights)
    own = loss(labels, weights * shares.fused, field_weights * shares.fields)
    other = loss(partners(labels), weights * (1 - shares.fused), field_weights * (1 - shares.fields))
    return LossSum(*(a + b for a, b in zip(own, other, strict=True)))
