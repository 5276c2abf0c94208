"""Encoders of token sequences, [B, T] in ``ids``.

Legend of tensor shapes: B rows, T tokens, P tokens of several rows laid flat, D width.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders.base import Architecture, Evidence, Request
from xmodal_dist.encoders.dropout import RecordDropout
from xmodal_dist.settings import Settings

__all__ = [
    "TEXT_ENCODERS",
    "SequenceOptions",
    "TextEncoder",
    "TextEncoderKind",
    "TextOptions",
    "bucket_length",
    "rarity_weights",
]

TextEncoderKind = Literal["transformer", "gru", "lstm", "bag"]
_STREAM_FEATURES = 302
_NUM_HEADS = 4


class TextEncoder(nn.Module):
    """Token ids to features: a bag of embeddings, with a small transformer, GRU or LSTM over them where asked.

    The bag (embeddings added up, as in fastText, Joulin et al. 2017) alone is strong on short texts and few records;
    what a sequence encoder learns of the order is added to it, from nothing at first.

    A sequence encoder sees the rows by length, so that padding costs little: rows of about equal length form a group,
    padded to a length of few (see :func:`bucket_length`); the groups' tokens lie flat, one after the other.

    Args:
        vocab_size: number of token ids, padding (0) included.
        max_tokens: longest sequence; what lies beyond is cut off.
        width: features per row.
        kind: what runs beside the bag; ``bag`` is nothing.
        weights: [vocab_size] what each token's embedding counts, see :func:`rarity_weights`; None for all alike.
        max_batch_tokens: most tokens, padding included, whose activations a sequence encoder holds at once; a larger
            batch runs in parts, each computed again for its gradient. At least ``max_tokens``. None sets no bound.
    """

    weights: torch.Tensor

    def __init__(
        self,
        vocab_size: int,
        max_tokens: int,
        width: int,
        kind: TextEncoderKind,
        weights: torch.Tensor | None = None,
        max_batch_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.max_batch_tokens = max_batch_tokens
        self.embed = nn.Embedding(vocab_size, width, padding_idx=0)
        # Small, so that what a token means comes from the data and not from where it began.
        nn.init.normal_(self.embed.weight, std=0.01)
        self.register_buffer(
            "weights", torch.ones(vocab_size) if weights is None else weights, persistent=False
        )
        make = _SEQUENCES[kind]
        self.sequence = None if make is None else make(width, max_tokens)
        if self.sequence is not None:
            self.norm = nn.LayerNorm(2 * width)
            self.project = nn.Linear(2 * width, width)
            nn.init.zeros_(self.project.weight)
            nn.init.zeros_(self.project.bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Features [B, width] of ``ids`` [B, T] int64, 0 = no token (anywhere); a row without tokens is legal."""
        ids = ids[:, : self.max_tokens]
        features = self._bag(ids)
        if self.sequence is not None and len(ids):
            features = features + self._in_order(self.sequence, ids)
        return features

    def _bag(self, ids: torch.Tensor) -> torch.Tensor:
        """Sum of the weighted embeddings over the root of their number, [B, T] -> [B, width]: longer if they agree."""
        mask = ids != 0
        number = mask.sum(dim=1, keepdim=True).clamp(min=1).to(self.weights.dtype)
        shares = self.weights[ids] * mask / number.sqrt()
        return F.embedding_bag(
            ids,
            self.embed.weight,
            mode="sum",
            per_sample_weights=shares,
            padding_idx=self.embed.padding_idx,
            sparse=self.embed.sparse,
        )

    def _in_order(self, sequence: _Transformer | _Recurrent, ids: torch.Tensor) -> torch.Tensor:
        """What the sequence encoder makes of the rows, [B, T] -> [B, width]; one wait for the device, for lengths."""
        ends = (ids != 0) * torch.arange(1, ids.shape[1] + 1, device=ids.device)
        lengths, order = ends.amax(dim=1).clamp(min=1).sort(descending=True, stable=True)
        parts = _layouts(lengths.cpu(), ids.shape[1], self.max_batch_tokens)
        run: Callable[..., torch.Tensor] = functools.partial(self._part, sequence)
        if len(parts) > 1:  # The random state need not be kept: nothing draws from it.
            run = functools.partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        rows_of = torch.split(ids[order], [len(part.lengths) for part in parts])
        features = [run(rows, part) for rows, part in zip(rows_of, parts, strict=True)]
        by_length = torch.cat(features)
        return torch.empty_like(by_length).index_copy(0, order, by_length)

    def _part(self, sequence: _Transformer | _Recurrent, ids: torch.Tensor, layout: _Layout) -> torch.Tensor:
        """``ids`` [n, T], longest first -> [n, width]."""
        groups = torch.split(ids, [rows for rows, _ in layout.groups])
        flat = torch.cat(
            [group[:, :length].flatten() for group, (_, length) in zip(groups, layout.groups, strict=True)]
        )
        mask = flat != 0
        states = sequence(self.embed(flat) * self.weights[flat].unsqueeze(-1), mask, layout)
        pooled = [_pool(x, inside) for x, inside in zip(layout.cut(states), layout.cut(mask), strict=True)]
        features: torch.Tensor = self.project(self.norm(torch.cat(pooled)))
        return features


def rarity_weights(token_rows: Sequence[int], rows: int) -> torch.Tensor:
    """Inverse document frequencies as scikit-learn smooths them, ln((1 + rows) / (1 + token_rows)) + 1, in float32.

    Args:
        token_rows: training rows that hold each token, by id.
        rows: training rows in all.
    """
    return ((1 + rows) / (1 + torch.tensor(token_rows, dtype=torch.float32))).log() + 1


def bucket_length(num_tokens: int) -> int:
    """The length that a text of so many tokens (at least 1) is padded to.

    A power of two up to 8, a multiple of 8 up to 64, then a multiple of an eighth of the next power of two.
    """
    power = 1 << (num_tokens - 1).bit_length()
    step = max(min(power, 8), power // 8)
    return -(-num_tokens // step) * step


class _Layout(NamedTuple):
    """How rows, longest first, lie flat: group after group, row after row, each padded to its group's length.

    Attributes:
        lengths: [n] int64 on the CPU, at least 1, descending.
        groups: number of rows and padded length of each group.
    """

    lengths: torch.Tensor
    groups: list[tuple[int, int]]

    def cut(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """[P, ...] as one [rows, length, ...] for each group."""
        pieces = torch.split(flat, [rows * length for rows, length in self.groups])
        return [piece.view(*group, *flat.shape[1:]) for piece, group in zip(pieces, self.groups, strict=True)]


def _layouts(lengths: torch.Tensor, longest: int, max_tokens: int | None) -> list[_Layout]:
    """Group rows of descending ``lengths`` by bucket length, in parts of at most ``max_tokens`` with padding."""
    parts: list[list[tuple[int, int]]] = [[]]
    used = 0
    buckets = (min(bucket_length(length), longest) for length in lengths.tolist())
    for length, same in itertools.groupby(buckets):
        rows = sum(1 for _ in same)
        while rows:
            fit = rows if max_tokens is None else min(rows, (max_tokens - used) // length)
            if fit == 0:
                parts.append([])
                used = 0
                continue
            parts[-1].append((fit, length))
            used += fit * length
            rows -= fit
    counts = [sum(rows for rows, _ in groups) for groups in parts]
    return [_Layout(own, groups) for own, groups in zip(torch.split(lengths, counts), parts, strict=True)]


def _pool(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean and maximum over the tokens in ``mask``, [n, L, D] -> [n, 2 D]; zeros for a row without any."""
    inside = mask.unsqueeze(-1)
    mean = (tokens * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)
    peak = tokens.masked_fill(~inside, -1e4).amax(dim=1) * inside.any(dim=1)
    return torch.cat([mean, peak], dim=1)


class _Transformer(nn.Module):
    """One pre-norm transformer layer with learned positions; attention has no biases and stays within a row."""

    def __init__(self, width: int, max_tokens: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.heads = _NUM_HEADS if width % _NUM_HEADS == 0 else 1

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, layout: _Layout) -> torch.Tensor:
        """``tokens`` [P, D] and ``mask`` [P] -> [P, D]."""
        x = tokens + torch.cat([self.positions[:length].repeat(rows, 1) for rows, length in layout.groups])
        bias = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -1e4)
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        mixed = []
        for group, group_bias in zip(layout.cut(qkv), layout.cut(bias), strict=True):
            query, key, value = group.permute(2, 0, 3, 1, 4)
            heads = F.scaled_dot_product_attention(query, key, value, attn_mask=group_bias[:, None, None, :])
            mixed.append(heads.transpose(1, 2).flatten(2).flatten(0, 1))
        x = x + self.out(torch.cat(mixed))
        result: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return result


class _Recurrent(nn.Module):
    """A bidirectional recurrent network that ends each row at its last token."""

    make: type[nn.GRU] | type[nn.LSTM]

    def __init__(self, width: int, max_tokens: int) -> None:
        super().__init__()
        del max_tokens
        if width % 2:
            raise ValueError(f"a recurrent text encoder needs an even width, not {width}")
        self.net = self.make(width, width // 2, bidirectional=True)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, layout: _Layout) -> torch.Tensor:
        """``tokens`` [P, D] -> [P, D]; zeros after a row's last token."""
        del mask
        padded = torch.cat([torch.full((rows,), length) for rows, length in layout.groups])
        starts = padded.cumsum(0) - padded
        # All rows' first tokens, then all second ones, ...: what a packed sequence is.
        step, row = torch.nonzero(
            torch.arange(int(layout.lengths[0]))[:, None] < layout.lengths, as_tuple=True
        )
        places = (starts[row] + step).to(tokens.device, non_blocking=True)
        packed = nn.utils.rnn.PackedSequence(tokens.index_select(0, places), torch.bincount(step))
        states = self.net(packed)[0].data
        unpacked: torch.Tensor = states.new_zeros(tokens.shape).index_copy(0, places, states)
        return unpacked


class _GRU(_Recurrent):
    make = nn.GRU


class _LSTM(_Recurrent):
    make = nn.LSTM


_SEQUENCES: dict[TextEncoderKind, type[_Transformer] | type[_Recurrent] | None] = {
    "bag": None,
    "transformer": _Transformer,
    "gru": _GRU,
    "lstm": _LSTM,
}


class TextOptions(Settings):
    """Options of the text encoders that are trained from nothing."""

    feature_dropout: float = Field(0.4, ge=0, lt=1)
    """Share of the encoder's features that training leaves out; few texts are soon learned by heart."""


class SequenceOptions(TextOptions):
    """Options of those that see the order of tokens."""

    max_batch_tokens: int = Field(65_536, ge=4096)
    """Most tokens, padding included, whose activations are held at once (about 8 KiB each in training at width 128); a
    larger batch runs in parts, which training computes twice."""


class _Encoder(Evidence):
    def __init__(self, net: TextEncoder, dropout: float) -> None:
        super().__init__()
        self.net = net
        self.dropout = RecordDropout(dropout, _STREAM_FEATURES)

    def forward(self, tensors: Tensors) -> torch.Tensor:
        features: torch.Tensor = self.dropout(self.net(tensors["ids"]), tensors.get("keys"))
        return features


def _text(kind: TextEncoderKind, request: Request) -> nn.Module:
    options, values = request.options, request.values
    assert isinstance(options, TextOptions)
    most = options.max_batch_tokens if isinstance(options, SequenceOptions) else None
    weights = rarity_weights(values["token_rows"], values["rows"])
    net = TextEncoder(values["vocab_size"], values["num_tokens"], request.width, kind, weights, most)
    return _Encoder(net, options.feature_dropout)


TEXT_ENCODERS = (
    Architecture(
        "bag",
        "bag of token embeddings; best on a few thousand short texts",
        TextOptions,
        functools.partial(_text, "bag"),
    ),
    Architecture(
        "transformer",
        "the bag and one transformer layer",
        SequenceOptions,
        functools.partial(_text, "transformer"),
    ),
    Architecture("gru", "the bag and a bidirectional GRU", SequenceOptions, functools.partial(_text, "gru")),
    Architecture(
        "lstm", "the bag and a bidirectional LSTM", SequenceOptions, functools.partial(_text, "lstm")
    ),
)
