"""Encoders of table columns: ``numeric`` and ``missing`` [B, Cn], ``categorical`` [B, Cc]."""

from __future__ import annotations

import torch
from torch import nn

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders.base import Architecture, Request
from xmodal_dist.settings import Settings

__all__ = ["TABLE_ENCODERS", "TableEncoder"]

_FIRST_ID = 2
"""Ids of a categorical column before its first category: missing and unknown."""


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


class _Encoder(nn.Module):
    def __init__(self, net: TableEncoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, tensors: Tensors) -> torch.Tensor:
        features: torch.Tensor = self.net(tensors["numeric"], tensors["missing"], tensors["categorical"])
        return features


def _mlp(request: Request) -> nn.Module:
    columns = request.values["columns"]
    sizes = tuple(_FIRST_ID + len(spec["categories"]) for spec in columns if "categories" in spec)
    return _Encoder(TableEncoder(len(columns) - len(sizes), sizes, request.width))


TABLE_ENCODERS = (
    Architecture("mlp", "perceptron on numbers, missing flags and category embeddings", Settings, _mlp),
)
