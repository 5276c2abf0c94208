"""Fusions: features of all fields and which of them are there -> logits.

Every fusion has the same call, ``fusion(features [B, M, D], field_logits [B, M, C], present [B, M], keys) -> [B, C]``,
gives an absent field no weight and gives finite logits also where no field is present. Its
``embed(features, present, keys) -> [B, embedding_width]`` are the fused features that such logits are made from.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from xmodal_dist.encoders.dropout import RecordDropout

__all__ = ["FUSIONS", "ConcatFusion", "FusionKind", "GatedFusion", "LateFusion"]

FusionKind = Literal["late", "concat", "gated"]
_DROPOUT_STREAM = 0x_F0_51


def _weights(scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Softmax of ``scores`` [B, M, ...] over the present fields; over all fields in rows where none is present."""
    usable = present | ~present.any(dim=1, keepdim=True)
    usable = usable.view(*usable.shape, *([1] * (scores.dim() - 2)))
    return scores.masked_fill(~usable, -1e4).softmax(dim=1)


class LateFusion(nn.Module):
    """A learned weighting of the fields' own logits, scaled up with the number of fields that agree."""

    def __init__(self, num_fields: int, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        del num_classes, dropout
        self.embedding_width = width
        self.scores = nn.Parameter(torch.zeros(num_fields))

    def forward(
        self,
        features: torch.Tensor,
        field_logits: torch.Tensor,
        present: torch.Tensor,
        keys: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits [B, C]; ``features`` [B, M, D], ``field_logits`` [B, M, C], ``present`` [B, M] bool."""
        del features, keys
        return self._average(field_logits, present)

    def embed(self, features: torch.Tensor, present: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """The fields' features under the weights of their logits [B, D]; no features are shared by all heads here."""
        del keys
        return self._average(features, present)

    def _average(self, values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        weights = _weights(self.scores.expand_as(present), present)
        return (weights.unsqueeze(-1) * values).sum(dim=1)


class ConcatFusion(nn.Module):
    """A perceptron on all features side by side; stand-ins take the places of absent fields."""

    def __init__(self, num_fields: int, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.embedding_width = 2 * width
        self.dropout = RecordDropout(dropout, _DROPOUT_STREAM)
        self.hidden = nn.Linear(num_fields * width, 2 * width)
        self.output = nn.Linear(2 * width, num_classes)

    def forward(
        self,
        features: torch.Tensor,
        field_logits: torch.Tensor,
        present: torch.Tensor,
        keys: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits [B, C]; ``features`` [B, M, D], ``field_logits`` [B, M, C], ``present`` [B, M] bool."""
        del field_logits
        logits: torch.Tensor = self.output(self.embed(features, present, keys))
        return logits

    def embed(self, features: torch.Tensor, present: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """The hidden layer [B, 2 D]."""
        del present
        return nn.functional.silu(self.hidden(self.dropout(features.flatten(1), keys)))


class GatedFusion(nn.Module):
    """Gated multimodal unit (Arevalo et al. 2017, arXiv:1702.01992), gates normalised over the present fields."""

    def __init__(self, num_fields: int, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.embedding_width = width
        self.dropout = RecordDropout(dropout, _DROPOUT_STREAM)
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(num_fields))
        self.gates = nn.Linear(num_fields * width, num_fields * width)
        self.output = nn.Linear(width, num_classes)

    def forward(
        self,
        features: torch.Tensor,
        field_logits: torch.Tensor,
        present: torch.Tensor,
        keys: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits [B, C]; ``features`` [B, M, D], ``field_logits`` [B, M, C], ``present`` [B, M] bool."""
        del field_logits
        logits: torch.Tensor = self.output(self.embed(features, present, keys))
        return logits

    def embed(self, features: torch.Tensor, present: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """The gated sum of the fields' values [B, D]."""
        features = self.dropout(features, keys)
        values = torch.stack([value(features[:, m]) for m, value in enumerate(self.values)], dim=1).tanh()
        gates = _weights(self.gates(features.flatten(1)).view_as(features), present)
        return (gates * values).sum(dim=1)


FUSIONS: dict[FusionKind, type[LateFusion] | type[ConcatFusion] | type[GatedFusion]] = {
    "late": LateFusion,
    "concat": ConcatFusion,
    "gated": GatedFusion,
}
