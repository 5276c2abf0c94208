"""Losses as sums: divided by the sum of weights over all ranks they give the same mean on any number of workers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

__all__ = ["LossSum", "classification_loss", "weighted_cross_entropy"]


class LossSum(NamedTuple):
    """Loss of a batch before the division by the global weight.

    Attributes:
        total: scalar, sum over rows of weight x loss: what is minimised.
        weight: scalar, sum of the weights; 0 if all rows are padding.
        fused: the part of ``total`` that comes from the fused logits: what to show.
    """

    total: torch.Tensor
    weight: torch.Tensor
    fused: torch.Tensor


def weighted_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> LossSum:
    """Cross-entropy with label smoothing, summed over rows.

    Args:
        logits: [B, C].
        labels: [B] int64; the value does not matter where the weight is 0 (padding has -1).
        weights: [B], 0 = padding.
        class_weights: [C]; a row's weight is multiplied by that of its class.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """
    classes = labels.clamp(min=0)
    if class_weights is not None:
        weights = weights * class_weights[classes]
    losses = F.cross_entropy(logits.float(), classes, reduction="none", label_smoothing=label_smoothing)
    total = (losses * weights).sum()
    return LossSum(total, weights.sum(), total)


def classification_loss(
    fused: torch.Tensor,
    field_logits: torch.Tensor,
    present: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    aux_weight: float = 0.0,
) -> LossSum:
    """Loss of the fused logits plus ``aux_weight`` times the sum of the present fields' own losses.

    Args:
        fused: [B, C].
        field_logits: [B, M, C].
        present: [B, M] bool.
        labels: [B] int64, -1 where the weight is 0.
        weights: [B], 0 = padding.
        class_weights: [C] or None.
        label_smoothing: as in :func:`weighted_cross_entropy`.
        aux_weight: 0 still sends a (zero) gradient to every parameter, as DDP needs.

    Returns:
        The sum of both parts and the weight of the fused part.
    """
    main = weighted_cross_entropy(fused, labels, weights, class_weights, label_smoothing)
    num_fields = present.shape[1]
    aux = weighted_cross_entropy(
        field_logits.flatten(0, 1),
        labels.repeat_interleave(num_fields),
        (weights[:, None] * present).flatten(),
        class_weights,
        label_smoothing,
    )
    return LossSum(main.total + aux_weight * aux.total, main.weight, main.total)
