"""Encoders of table columns: ``numeric`` and ``missing`` [B, Cn], ``categorical`` [B, Cc]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders.base import Architecture, Request
from xmodal_dist.encoders.dropout import RecordDropout
from xmodal_dist.settings import Settings

__all__ = ["TABLE_ENCODERS", "FTTransformer", "FTTransformerOptions", "TableEncoder"]

_FIRST_ID = 2
"""Ids of a categorical column before its first category: missing and unknown."""
_STREAM_BLOCKS = 411


class TableEncoder(nn.Module):
    """Table columns to features: a two-layer perceptron on numbers, missing flags and category embeddings.

    Args:
        num_numeric: number of numeric columns, Cn; may be 0.
        cardinalities: ids of each categorical column (Cc of them), with 0 = missing and 1 = unknown included.
        width: features per row.
    """

    def __init__(self, num_numeric: int, cardinalities: tuple[int, ...], width: int) -> None:
        super().__init__()
        sizes = [min(32, 2 + cardinality // 2) for cardinality in cardinalities]
        self.embeds = nn.ModuleList(
            nn.Embedding(c, size) for c, size in zip(cardinalities, sizes, strict=True)
        )
        self.mlp = nn.Sequential(
            nn.Linear(2 * num_numeric + sum(sizes), 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(
        self, numeric: torch.Tensor, missing: torch.Tensor, categorical: torch.Tensor
    ) -> torch.Tensor:
        """Features [B, width].

        Args:
            numeric: [B, Cn] float, standardised; what stands at missing values does not matter unless it is NaN.
            missing: [B, Cn] bool.
            categorical: [B, Cc] int64 ids.
        """
        parts = [numeric.masked_fill(missing, 0.0), missing.to(numeric.dtype)]
        parts += [embed(ids) for embed, ids in zip(self.embeds, categorical.unbind(dim=1), strict=True)]
        features: torch.Tensor = self.mlp(torch.cat(parts, dim=1))
        return features


class FTTransformerOptions(Settings):
    """Options of the FT-Transformer."""

    blocks: int = Field(3, ge=1, le=24)
    """Transformer layers."""
    token_width: int = Field(64, ge=8, le=1024)
    """Width of a token, a multiple of ``heads``."""
    heads: int = Field(8, ge=1, le=64)
    """Attention heads."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the feed-forward layers' hidden values that training leaves out."""

    @model_validator(mode="after")
    def _check_heads(self) -> FTTransformerOptions:
        if self.token_width % self.heads:
            raise ValueError(f"token_width ({self.token_width}) must be a multiple of heads ({self.heads})")
        return self


class FTTransformer(nn.Module):
    """A transformer over a record's columns, each a token (Gorishniy et al. 2021, arXiv:2106.11959).

    A number x is the token ``x * weight + bias`` of its column, a category an embedding of its own; a missing value of
    either sort is a token of its own, learned for its column. The features are those of a class token behind pre-norm
    layers, the first without a norm before its attention, with ReGLU feed-forward layers. In the manner of this
    package attention has no biases, dropout goes by record keys and stands in the feed-forward layers alone.

    Args:
        num_numeric: number of numeric columns, Cn; may be 0.
        cardinalities: ids of each categorical column (Cc of them), with 0 = missing and 1 = unknown included.
        width: features per row.
        options: sizes and dropout.
    """

    starts: torch.Tensor

    def __init__(
        self, num_numeric: int, cardinalities: Sequence[int], width: int, options: FTTransformerOptions
    ) -> None:
        super().__init__()
        size = options.token_width
        self.num_numeric = num_numeric
        bound = size**-0.5
        if num_numeric:
            tokens = torch.empty(3, num_numeric, size).uniform_(-bound, bound)
            self.weight, self.bias, self.unknown = (nn.Parameter(part.clone()) for part in tokens)
        if cardinalities:
            self.embed = nn.Embedding(sum(cardinalities), size)
            nn.init.uniform_(self.embed.weight, -bound, bound)
        self.register_buffer("starts", torch.tensor([0, *cardinalities[:-1]]).cumsum(0), persistent=False)
        self.class_token = nn.Parameter(torch.empty(size).uniform_(-bound, bound))
        self.blocks = nn.ModuleList(_Block(size, options, index) for index in range(options.blocks))
        self.norm = nn.LayerNorm(size)
        self.project = nn.Linear(size, width)

    def forward(
        self,
        numeric: torch.Tensor,
        missing: torch.Tensor,
        categorical: torch.Tensor,
        keys: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Features [B, width].

        Args:
            numeric: [B, Cn] float, standardised; what stands at missing values does not matter unless it is NaN.
            missing: [B, Cn] bool.
            categorical: [B, Cc] int64 ids.
            keys: [B] int64 record keys for dropout in training.
        """
        tokens = [self.class_token.expand(len(numeric), 1, -1)]
        if self.num_numeric:
            numbers = numeric.unsqueeze(2) * self.weight + self.bias
            tokens.append(torch.where(missing.unsqueeze(2), self.unknown, numbers))
        if categorical.shape[1]:
            tokens.append(self.embed(categorical + self.starts))
        x = torch.cat(tokens, dim=1)
        for block in self.blocks:
            x = block(x, keys)
        features: torch.Tensor = self.project(F.relu(self.norm(x[:, 0])))
        return features


class _Block(nn.Module):
    """One pre-norm layer on tokens [B, T, D]; the first block's attention has no norm before it."""

    def __init__(self, size: int, options: FTTransformerOptions, index: int) -> None:
        super().__init__()
        self.heads = options.heads
        self.attention_norm = nn.Identity() if index == 0 else nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(size, size, bias=False)
        self.mlp_norm = nn.LayerNorm(size)
        hidden = size * 4 // 3
        self.rise = nn.Linear(size, 2 * hidden)
        self.fall = nn.Linear(hidden, size)
        self.dropout = RecordDropout(options.dropout, _STREAM_BLOCKS + index)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        query, key, value = (
            self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        gate, linear = self.rise(self.mlp_norm(x)).chunk(2, dim=-1)
        result: torch.Tensor = x + self.fall(self.dropout(linear * F.relu(gate), keys))
        return result


class _Encoder(nn.Module):
    def __init__(self, net: TableEncoder | FTTransformer, *others: str) -> None:
        super().__init__()
        self.net = net
        self.others = others

    def forward(self, tensors: Tensors) -> torch.Tensor:
        others = (tensors.get(name) for name in self.others)
        features: torch.Tensor = self.net(
            tensors["numeric"], tensors["missing"], tensors["categorical"], *others
        )
        return features


def _columns(request: Request) -> tuple[int, tuple[int, ...]]:
    """Number of numeric columns, and ids of each categorical one."""
    columns = request.values["columns"]
    sizes = tuple(_FIRST_ID + len(spec["categories"]) for spec in columns if "categories" in spec)
    return len(columns) - len(sizes), sizes


def _mlp(request: Request) -> nn.Module:
    return _Encoder(TableEncoder(*_columns(request), request.width))


def _ft_transformer(request: Request) -> nn.Module:
    assert isinstance(request.options, FTTransformerOptions)
    return _Encoder(FTTransformer(*_columns(request), request.width, request.options), "keys")


TABLE_ENCODERS = (
    Architecture("mlp", "perceptron on numbers, missing flags and category embeddings", Settings, _mlp),
    Architecture(
        "ft_transformer",
        "a transformer over the columns, each value a token",
        FTTransformerOptions,
        _ft_transformer,
    ),
)
