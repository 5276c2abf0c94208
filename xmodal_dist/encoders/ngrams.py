"""TF-IDF of words, their pairs and their pieces, through an embedding: what linear models are strong with on few texts.

Weights are those of scikit-learn's TfidfVectorizer for a set: ln((1 + n) / (1 + rows)) + 1, each text's to length 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders.base import Architecture, Request
from xmodal_dist.encoders.dropout import RecordDropout
from xmodal_dist.encoders.tokens import TextOptions, rarity_scale

__all__ = ["NGRAMS", "NgramBag"]

_STREAM_FEATURES = 304


class NgramBag(nn.Module):
    """Sums of embeddings by TF-IDF.

    Args:
        token_rows: training rows that hold each token, by id; 0 is padding.
        rows: training rows in all.
        width: features per row.
    """

    weights: torch.Tensor
    scale: torch.Tensor

    def __init__(self, token_rows: Sequence[int], rows: int, width: int) -> None:
        super().__init__()
        held = torch.tensor(token_rows, dtype=torch.float32)
        self.embed = nn.Embedding(len(token_rows), width, padding_idx=0)
        # Small, so that what a token means comes from the data and not from where it began.
        nn.init.normal_(self.embed.weight, std=0.01)
        self.register_buffer("weights", ((1 + rows) / (1 + held)).log() + 1, persistent=False)
        self.register_buffer("scale", rarity_scale(held), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Features [B, width] of ``ids`` [B, T] int64, 0 = no token; a row without tokens gets zeros."""
        weights = F.normalize(self.weights[ids] * (ids != 0), dim=1)
        return F.embedding_bag(
            ids, self.embed.weight, mode="sum", per_sample_weights=weights * self.scale[ids],
            padding_idx=self.embed.padding_idx,
        )  # fmt: skip


class _Encoder(nn.Module):
    def __init__(self, net: NgramBag, dropout: float) -> None:
        super().__init__()
        self.net = net
        self.dropout = RecordDropout(dropout, _STREAM_FEATURES)

    def forward(self, tensors: Tensors) -> torch.Tensor:
        features: torch.Tensor = self.dropout(self.net(tensors["ids"]), tensors.get("keys"))
        return features


def _build(request: Request) -> nn.Module:
    assert isinstance(request.options, TextOptions)
    values = request.values
    net = NgramBag(values["token_rows"], values["rows"], request.width)
    return _Encoder(net, request.options.feature_dropout)


NGRAMS = Architecture(
    "ngrams", "TF-IDF of words, pairs of words and pieces of words; best on few texts", TextOptions, _build
)
