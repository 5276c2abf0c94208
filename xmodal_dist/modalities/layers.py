"""Encoder building blocks shared by modalities: images and spectrograms, token sequences, table columns.

They are built so that training on N workers equals training on one: a row's features depend on no other row and not on
the amount of padding (GroupNorm and LayerNorm, masked pooling), nothing draws from a random generator in ``forward``,
and no parameter has a gradient that is zero but for rounding (no bias before a norm, no attention key bias), which
Adam would turn into steps of full size.

Legend of tensor shapes: B rows, C channels, H W pixels (or mel bands and frames), T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from xmodal_dist.modalities.randomness import uniform_like

__all__ = ["ConvEncoder", "RecordDropout", "TableEncoder", "TextEncoder", "TextEncoderKind"]

TextEncoderKind = Literal["transformer", "gru", "bag"]
_CHANNELS_PER_GROUP = 16
_NUM_HEADS = 4
_COMMON_ROWS = 20


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
        kept = uniform_like(keys, self.stream, x[0].numel()).view_as(x) >= self.probability
        return x * kept.to(x.dtype) / (1.0 - self.probability)


class _ConvBlock(nn.Module):
    """3x3 convolution, GroupNorm, SiLU; residual where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(max(1, out_channels // _CHANNELS_PER_GROUP), out_channels)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.norm(self.conv(x)))
        return x + y if self.residual else y


class ConvEncoder(nn.Module):
    """A small residual CNN for images (28 to 224 px) and log-mel spectrograms ([B, 1, mels, frames]).

    Two coordinate channels (Liu et al. 2018, "CoordConv") let it tell places apart, as a spectrogram's frequency bands,
    in spite of the global average and maximum pooling at its end.

    Args:
        in_channels: channels of the input.
        width: features per row.
        channels: output channels of each stage; every stage halves height and width.
    """

    def __init__(self, in_channels: int, width: int, channels: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        previous = in_channels + 2
        for stage, count in enumerate(channels):
            blocks.append(_ConvBlock(previous, count, stride=2))
            if stage > 0:
                blocks.append(_ConvBlock(count, count, stride=1))
            previous = count
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(2 * previous)
        self.project = nn.Linear(2 * previous, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [B, width] of ``x`` [B, C, H, W], normalised to about mean 0 and deviation 1."""
        maps = self.blocks(
            torch.cat([x, _coordinates(x)], dim=1).contiguous(memory_format=torch.channels_last)
        )
        pooled = torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)
        features: torch.Tensor = self.project(self.norm(pooled))
        return features


def _coordinates(x: torch.Tensor) -> torch.Tensor:
    """Row and column position in [-1, 1] as two channels, [B, 2, H, W]."""
    batch, _, height, width = x.shape
    rows = torch.linspace(-1.0, 1.0, height, device=x.device, dtype=x.dtype).view(1, 1, height, 1)
    columns = torch.linspace(-1.0, 1.0, width, device=x.device, dtype=x.dtype).view(1, 1, 1, width)
    return torch.cat([rows.expand(batch, 1, height, width), columns.expand(batch, 1, height, width)], dim=1)


class TextEncoder(nn.Module):
    """Token ids to features: a bag of embeddings, with a small transformer or GRU over them where asked.

    The bag (mean of embeddings, as in fastText, Joulin et al. 2017) alone is strong on short texts and few records;
    what a sequence encoder learns of the order is added to it, from nothing at first.

    Args:
        vocab_size: number of token ids, padding (0) included.
        max_tokens: longest sequence; what lies beyond is cut off.
        width: features per row.
        kind: what runs beside the bag; ``bag`` is nothing.
        token_rows: training rows that hold each token, by id. Adam moves a rare token's embedding as far as a common
            one's, so that rare tokens are learned by heart; each embedding is scaled by the square root of its
            share of ``_COMMON_ROWS`` rows, at most 1. None scales nothing.
    """

    scale: torch.Tensor

    def __init__(
        self,
        vocab_size: int,
        max_tokens: int,
        width: int,
        kind: TextEncoderKind,
        token_rows: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.embed = nn.Embedding(vocab_size, width, padding_idx=0)
        # Small, so that what a token means comes from the data and not from where it began.
        nn.init.normal_(self.embed.weight, std=0.01)
        rows = torch.full((vocab_size,), _COMMON_ROWS) if token_rows is None else torch.tensor(token_rows)
        self.register_buffer("scale", (rows / _COMMON_ROWS).clamp(max=1.0).sqrt(), persistent=False)
        self.sequence: nn.Module | None = None
        if kind == "transformer":
            self.sequence = _Transformer(width, max_tokens)
        elif kind == "gru":
            self.sequence = _GRU(width)
        if self.sequence is not None:
            self.norm = nn.LayerNorm(2 * width)
            self.project = nn.Linear(2 * width, width)
            nn.init.zeros_(self.project.weight)
            nn.init.zeros_(self.project.bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Features [B, width] of ``ids`` [B, T] int64, 0 = no token (anywhere); a row without tokens is legal."""
        ids = ids[:, : self.max_tokens]
        mask = ids != 0
        tokens = self.embed(ids) * self.scale[ids].unsqueeze(-1)
        features = _mean(tokens, mask)
        if self.sequence is not None:
            features = features + self.project(self.norm(_pool(self.sequence(tokens, mask), mask)))
        return features


def _pool(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean and maximum over the tokens in ``mask``, [B, T, D] -> [B, 2 D]; zeros for a row without any."""
    inside = mask.unsqueeze(-1)
    peak = tokens.masked_fill(~inside, -1e4).amax(dim=1) * inside.any(dim=1)
    return torch.cat([_mean(tokens, mask), peak], dim=1)


def _mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens in ``mask``, [B, T, D] -> [B, D]; zeros for a row without any."""
    inside = mask.unsqueeze(-1)
    return (tokens * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)


class _Transformer(nn.Module):
    """One pre-norm transformer layer with learned positions; attention has no biases."""

    def __init__(self, width: int, max_tokens: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.heads = _NUM_HEADS if width % _NUM_HEADS == 0 else 1

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = tokens.shape
        x = tokens + self.positions[:length]
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        bias = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -1e4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, None, None, :])
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        result: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return result


class _GRU(nn.Module):
    """A bidirectional GRU that ends each row at its last token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"a GRU text encoder needs an even width, not {width}")
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        place = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        lengths = (mask * place).amax(dim=1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(tokens, lengths, batch_first=True, enforce_sorted=False)
        states, _ = self.gru(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=mask.shape[1])
        return padded


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
