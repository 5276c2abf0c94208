"""Fusions: features of all fields and which of them are there -> logits.

Every fusion has the same call, ``fusion(features [B, M, D], field_logits [B, M, C], present [B, M], keys) -> [B, C]``,
gives an absent field no weight and gives finite logits also where no field is present. Its
``embed(features, present, keys) -> [B, embedding_width]`` are the fused features that such logits are made from.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from xmodal_dist.encoders.dropout import RecordDropout

__all__ = [
    "FUSIONS",
    "AttentionFusion",
    "ConcatFusion",
    "FusionKind",
    "FusionSizes",
    "GatedFusion",
    "LateFusion",
    "LowRankFusion",
]

FusionKind = Literal["late", "concat", "gated", "lowrank", "attention"]
_DROPOUT_STREAM = 0x_F0_51
_NUM_HEADS = 4


class FusionSizes(NamedTuple):
    """What a fusion is made for.

    Attributes:
        num_fields: M.
        num_classes: C.
        width: D, features per field.
        dropout: share of the features dropped in training, in [0, 1).
        rank: R, of ``lowrank``.
        bottleneck_tokens: K, of ``attention``.
        layers: of ``attention``.
    """

    num_fields: int
    num_classes: int
    width: int
    dropout: float
    rank: int
    bottleneck_tokens: int
    layers: int


def _weights(scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Softmax of ``scores`` [B, M, ...] over the present fields; over all fields in rows where none is present."""
    usable = present | ~present.any(dim=1, keepdim=True)
    usable = usable.view(*usable.shape, *([1] * (scores.dim() - 2)))
    return scores.masked_fill(~usable, -1e4).softmax(dim=1)


class LateFusion(nn.Module):
    """A product of the fields' own opinions, each to a learned power: what fields agree on grows with their number.

    The logarithmic opinion pool (Genest and Zidek 1986, "Combining probability distributions", section 3): to what is
    said of any record, learned too, each field adds its logits' difference from it. An absent field's power is 0; the
    others begin at 1, which is right for fields that are independent given the class.
    """

    def __init__(self, sizes: FusionSizes) -> None:
        super().__init__()
        self.embedding_width = sizes.width
        self.log_powers = nn.Parameter(torch.zeros(sizes.num_fields))
        self.prior = nn.Parameter(torch.zeros(sizes.num_classes))

    def forward(
        self,
        features: torch.Tensor,
        field_logits: torch.Tensor,
        present: torch.Tensor,
        keys: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits [B, C]; ``features`` [B, M, D], ``field_logits`` [B, M, C], ``present`` [B, M] bool."""
        del features, keys
        powers = self.log_powers.exp() * present
        return self.prior + (powers.unsqueeze(-1) * (field_logits - self.prior)).sum(dim=1)

    def embed(self, features: torch.Tensor, present: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """The fields' features under their shares of the powers [B, D]; no features are shared by all heads here."""
        del keys
        weights = _weights(self.log_powers.expand_as(present), present)
        return (weights.unsqueeze(-1) * features).sum(dim=1)


class ConcatFusion(nn.Module):
    """A perceptron on all features side by side; stand-ins take the places of absent fields."""

    def __init__(self, sizes: FusionSizes) -> None:
        super().__init__()
        self.embedding_width = 2 * sizes.width
        self.dropout = RecordDropout(sizes.dropout, _DROPOUT_STREAM)
        self.hidden = nn.Linear(sizes.num_fields * sizes.width, 2 * sizes.width)
        self.output = nn.Linear(2 * sizes.width, sizes.num_classes)

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

    def __init__(self, sizes: FusionSizes) -> None:
        super().__init__()
        num_fields, width = sizes.num_fields, sizes.width
        self.embedding_width = width
        self.dropout = RecordDropout(sizes.dropout, _DROPOUT_STREAM)
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(num_fields))
        self.gates = nn.Linear(num_fields * width, num_fields * width)
        self.output = nn.Linear(width, sizes.num_classes)

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


class LowRankFusion(nn.Module):
    """Low-rank multimodal fusion (Liu et al. 2018, arXiv:1806.00064): all products of features of different fields.

    The tensor of those products is never formed: each field is projected R times, projections of the same rank are
    multiplied over the fields, and ranks are averaged. The constant 1 that the paper appends to the features is the
    projections' bias, 1 at the start; an absent field is the factor 1, so it is left out of every product, exactly.
    """

    def __init__(self, sizes: FusionSizes) -> None:
        super().__init__()
        self.embedding_width = sizes.width
        self.rank = sizes.rank
        self.dropout = RecordDropout(sizes.dropout, _DROPOUT_STREAM)
        factors = [nn.Linear(sizes.width, sizes.rank * sizes.width) for _ in range(sizes.num_fields)]
        with torch.no_grad():
            for factor in factors:
                # Products of many fields would otherwise begin with heavy tails.
                factor.weight.mul_(sizes.num_fields**-0.5)
                factor.bias.fill_(1.0)
        self.factors = nn.ModuleList(factors)
        self.output = nn.Linear(sizes.width, sizes.num_classes)

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
        """The mean over ranks of the products over fields [B, D]; 1 where no field is present."""
        features = self.dropout(features, keys)
        product = features.new_ones(())
        for m, factor in enumerate(self.factors):
            product = product * torch.where(present[:, m, None], factor(features[:, m]), 1.0)
        return product.view(len(product), self.rank, -1).mean(dim=1)


class AttentionFusion(nn.Module):
    """A transformer over the fields that exchange through bottleneck tokens (Nagrani et al. 2021, arXiv:2107.00135).

    A field attends to itself and to the K bottleneck tokens, a bottleneck token to all of these and the present fields:
    what fields tell each other has to fit through the bottleneck. As in the paper, the logits are the mean over the
    present fields of what each has in the end. Unlike there, a field is one token, and layers are shared by the fields,
    which an embedding tells apart.
    """

    def __init__(self, sizes: FusionSizes) -> None:
        super().__init__()
        self.embedding_width = sizes.width
        self.dropout = RecordDropout(sizes.dropout, _DROPOUT_STREAM)
        self.field_embeddings = nn.Parameter(torch.randn(sizes.num_fields, sizes.width) * 0.1)
        self.bottleneck = nn.Parameter(torch.randn(sizes.bottleneck_tokens, sizes.width) * 0.1)
        self.layers = nn.ModuleList(_AttentionLayer(sizes.width) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.output = nn.Linear(sizes.width, sizes.num_classes)

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
        """Mean of the present fields' last tokens [B, D]; of all fields' stand-ins where none is present."""
        rows, num_fields, _ = features.shape
        tokens = self.dropout(features, keys) + self.field_embeddings
        x = torch.cat([tokens, self.bottleneck.to(tokens.dtype).expand(rows, -1, -1)], dim=1)
        seen = self._seen(present)[:, None]
        for layer in self.layers:
            x = layer(x, seen)
        last = self.norm(x[:, :num_fields])
        weights = _weights(torch.zeros_like(present, dtype=last.dtype), present)
        embedding: torch.Tensor = (weights.unsqueeze(-1) * last).sum(dim=1)
        return embedding

    def _seen(self, present: torch.Tensor) -> torch.Tensor:
        """Which tokens [B, M + K queries, M + K keys] attend to which."""
        num_fields, tokens = present.shape[1], present.shape[1] + len(self.bottleneck)
        itself = torch.eye(tokens, dtype=torch.bool, device=present.device)
        bottleneck = torch.arange(tokens, device=present.device) >= num_fields
        usable = F.pad(present, (0, len(self.bottleneck)), value=True)
        seen: torch.Tensor = itself | bottleneck | (bottleneck[:, None] & usable[:, None, :])
        return seen


class _AttentionLayer(nn.Module):
    """One pre-norm transformer layer; attention has no biases, since a key's would have no gradient but rounding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.heads = _NUM_HEADS if width % _NUM_HEADS == 0 else 1

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """``x`` [B, T, D]; ``seen`` [B, 1, T queries, T keys] bool, each query seeing some key."""
        query, key, value = (
            self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        result: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return result


FUSIONS: dict[
    FusionKind,
    type[LateFusion] | type[ConcatFusion] | type[GatedFusion] | type[LowRankFusion] | type[AttentionFusion],
] = {
    "late": LateFusion,
    "concat": ConcatFusion,
    "gated": GatedFusion,
    "lowrank": LowRankFusion,
    "attention": AttentionFusion,
}
