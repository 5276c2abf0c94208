"""TF-IDF of words, their pairs and their pieces, through an embedding: what linear models are strong with on few texts.

Weights are those of scikit-learn's TfidfVectorizer for a set: ln((1 + n) / (1 + rows)) + 1, each text's to length 1.
Words and their pairs are one set, pieces, of which there are many more, another.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders.base import Architecture, Evidence, Request
from xmodal_dist.encoders.dropout import RecordDropout
from xmodal_dist.encoders.tokens import TextOptions, rarity_weights

__all__ = ["NGRAMS", "NgramBag"]

_STREAM_FEATURES = 304


class NgramBag(nn.Module):
    """Sums of embeddings by TF-IDF.

    Args:
        weights: [V] what each token counts, by id; 0 is padding.
        first_piece: pieces of words have this id or a higher one.
        width: features per row.
    """

    weights: torch.Tensor

    def __init__(self, weights: torch.Tensor, first_piece: int, width: int) -> None:
        super().__init__()
        self.first_piece = first_piece
        self.embed = nn.Embedding(len(weights), width, padding_idx=0)
        # Small, so that what a token means comes from the data and not from where it began.
        nn.init.normal_(self.embed.weight, std=0.01)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Features [B, width] of ``ids`` [B, T] int64, 0 = no token; a row without tokens gets zeros."""
        weights, piece = self.weights[ids], ids >= self.first_piece
        of_words = F.normalize(weights * (~piece & (ids != 0)), dim=1)
        of_pieces = F.normalize(weights * piece, dim=1)
        return F.embedding_bag(
            ids,
            self.embed.weight,
            mode="sum",
            per_sample_weights=of_words + of_pieces,
            padding_idx=self.embed.padding_idx,
            sparse=self.embed.sparse,
        )


class _Encoder(Evidence):
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
    net = NgramBag(rarity_weights(values["token_rows"], values["rows"]), values["first_piece"], request.width)
    return _Encoder(net, request.options.feature_dropout)


NGRAMS = Architecture(
    "ngrams", "TF-IDF of words, pairs of words and pieces of words; best on few texts", TextOptions, _build
)
