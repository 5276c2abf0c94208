"""Text encoders: padding, groups and parts change neither features nor gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from xmodal_dist.encoders.tokens import TextEncoder, TextEncoderKind, bucket_length


def _random_ids(rows: int, num_tokens: int, seed: int = 0) -> torch.Tensor:
    """Rows of lognormal length, tokens left out in the middle and at the end, some rows empty."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (
        (torch.randn(rows, generator=generator) * 0.8 + math.log(12)).exp().round().clamp(max=num_tokens)
    )
    ids = torch.randint(1, 50, (rows, num_tokens), generator=generator)
    kept = torch.rand(rows, num_tokens, generator=generator) > 0.15
    return ids * kept * (torch.arange(num_tokens) < lengths[:, None])


def _text_encoder(kind: TextEncoderKind, max_batch_tokens: int | None = None) -> TextEncoder:
    torch.manual_seed(0)
    encoder = TextEncoder(50, 40, 8, kind, torch.arange(50.0), max_batch_tokens).double()
    if encoder.sequence is not None:  # from nothing at first; here it must show
        torch.nn.init.normal_(encoder.project.weight)
    return encoder


def _alone(encoder: TextEncoder, ids: torch.Tensor) -> torch.Tensor:
    """Features of one row [T] by the definition: without padding, groups or parts."""
    ids = ids[: int(ids.nonzero().max()) + 1] if ids.any() else ids[:0]
    tokens, mask = encoder.embed(ids) * encoder.weights[ids][:, None], ids != 0
    features = tokens[mask].sum(dim=0) / max(1, int(mask.sum())) ** 0.5
    if encoder.sequence is None:
        return features
    if not len(ids):
        pooled = torch.zeros(16, dtype=torch.float64)
    else:
        states = _sequence_alone(encoder.sequence, tokens, mask)[mask]
        pooled = torch.cat([states.mean(dim=0), states.amax(dim=0)])
    return features + encoder.project(encoder.norm(pooled))


def _sequence_alone(net: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if hasattr(net, "net"):
        states: torch.Tensor = net.net(tokens)[0]
        return states
    x = tokens + net.positions[: len(tokens)]
    query, key, value = net.qkv(net.attention_norm(x)).view(len(x), 3, net.heads, -1).permute(1, 2, 0, 3)
    scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    x = x + net.out((scores.softmax(dim=-1) @ value).permute(1, 0, 2).flatten(1))
    return x + net.mlp(net.mlp_norm(x))


@pytest.mark.parametrize("kind", ["transformer", "gru", "lstm", "bag"])
@pytest.mark.parametrize("max_batch_tokens", [None, 40, 200])
def test_encoding_by_length_changes_neither_features_nor_gradients(
    kind: TextEncoderKind, max_batch_tokens: int | None
) -> None:
    encoder = _text_encoder(kind, max_batch_tokens)
    ids = _random_ids(30, 40)
    ids[3] = ids[17] = 0
    ids[5, :39], ids[5, 39] = 0, 7  # a single token, at the very end
    weights = torch.randn(30, 8, dtype=torch.float64)
    expected = torch.stack([_alone(encoder, row) for row in ids])
    parameters = list(encoder.parameters())
    wanted = torch.autograd.grad((expected * weights).sum(), parameters)
    features = encoder(ids)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad((features * weights).sum(), parameters)
    for gradient, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["transformer", "gru", "lstm", "bag"])
def test_a_batch_without_a_token_and_one_without_a_row_encode(kind: TextEncoderKind) -> None:
    encoder = _text_encoder(kind)
    empty = encoder(torch.zeros(3, 40, dtype=torch.int64))
    torch.testing.assert_close(empty, torch.stack([_alone(encoder, torch.zeros(40, dtype=torch.int64))] * 3))
    empty.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters()), "every rank reduces every gradient"
    assert encoder(torch.zeros(0, 40, dtype=torch.int64)).shape == (0, 8)


def test_bucket_lengths_are_few_and_near() -> None:
    lengths = [bucket_length(n) for n in range(1, 4097)]
    assert all(b >= n and (b - n) / n <= (7 / 9 if n < 64 else 1 / 4) for n, b in enumerate(lengths, 1))
    assert len(set(lengths[:128])) == 15 and len(set(lengths)) <= 40
    assert [bucket_length(b) for b in lengths] == lengths


@pytest.mark.parametrize("kind", ["transformer", "gru", "lstm"])
def test_padding_is_bounded_and_so_is_what_is_held_at_once(kind: TextEncoderKind) -> None:
    encoder = _text_encoder(kind, max_batch_tokens=120)
    ids = _random_ids(64, 40)
    seen: list[torch.Tensor] = []
    assert encoder.sequence is not None
    encoder.sequence.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    encoder(ids)
    assert len(seen) > 1 and all(len(mask) <= 120 for mask in seen)
    padded, real = sum(len(mask) for mask in seen), sum(int(mask.sum()) for mask in seen)
    assert real == int((ids != 0).sum())
    spans = int(((ids != 0) * torch.arange(1, 41)).amax(dim=1).sum())  # dropped tokens keep their place
    assert padded <= 1.25 * spans + 64
