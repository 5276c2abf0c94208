"""Dropout that any number of workers does alike."""

from __future__ import annotations

import torch
from torch import nn

from xmodal_dist.randomness import uniform_like

__all__ = ["RecordDropout"]


class RecordDropout(nn.Module):
    """Dropout whose mask is a pure function of (record key, stream, position).

    A record's mask is therefore the same on any worker and in any batch. Identity in eval mode and without keys.

    Args:
        probability: share of the values set to zero, in [0, 1).
        stream: separates this mask from other uses of the same keys.
    """

    def __init__(self, probability: float, stream: int) -> None:
        super().__init__()
        self.probability = probability
        self.stream = stream

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """``x`` [B, ...] with values dropped and the rest scaled to keep the mean; ``keys`` [B] int64."""
        if keys is None or not self.training or self.probability == 0.0:
            return x
        kept = uniform_like(keys, self.stream, x.shape[1:].numel()).view_as(x) >= self.probability
        return x * kept.to(x.dtype) / (1.0 - self.probability)
