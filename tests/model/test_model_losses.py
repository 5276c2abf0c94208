from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from xmodal_dist.model.losses import classification_loss, weighted_cross_entropy


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(2, 30), seed=st.integers(0, 2**31), cut=st.floats(0.1, 0.9))
def test_sums_over_parts_add_up_to_the_sum_over_the_whole(rows: int, seed: int, cut: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    fused = torch.randn(rows, 5, generator=generator)
    each = torch.randn(rows, 3, 5, generator=generator)
    present = torch.rand(rows, 3, generator=generator) > 0.3
    labels = torch.randint(0, 5, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator)
    class_weights = torch.rand(5, generator=generator) + 0.5

    def loss(part: slice) -> tuple[float, float, float]:
        found = classification_loss(
            fused[part],
            each[part],
            present[part],
            labels[part],
            weights[part],
            class_weights=class_weights,
            label_smoothing=0.1,
            aux_weight=0.5,
        )
        return float(found.total), float(found.weight), float(found.fused)

    at = max(1, int(rows * cut))
    whole, parts = loss(slice(None)), [loss(slice(0, at)), loss(slice(at, None))]
    for i in range(3):
        assert abs(whole[i] - sum(p[i] for p in parts)) < 1e-3


def test_unweighted_it_is_the_usual_cross_entropy() -> None:
    logits, labels = torch.randn(20, 4), torch.randint(0, 4, (20,))
    found = weighted_cross_entropy(logits, labels, torch.ones(20), label_smoothing=0.1)
    assert torch.allclose(found.total / found.weight, F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_padding_counts_for_nothing() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, -1, -1])
    weights = torch.tensor([1.0, 1, 1, 1, 0, 0])
    whole = weighted_cross_entropy(logits, labels, weights)
    alone = weighted_cross_entropy(logits[:4], labels[:4], weights[:4])
    assert torch.allclose(whole.total, alone.total) and whole.weight == 4
    padding = weighted_cross_entropy(logits[4:], labels[4:], weights[4:])
    assert padding.total == 0 and padding.weight == 0
