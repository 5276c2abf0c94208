from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from xmodal_dist.model.losses import class_balanced_weights, classification_loss, weighted_cross_entropy


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(2, 30), seed=st.integers(0, 2**31), cut=st.floats(0.1, 0.9))
def test_sums_over_parts_add_up_to_the_sum_over_the_whole(rows: int, seed: int, cut: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    fused = torch.randn(rows, 5, generator=generator)
    each = torch.randn(rows, 3, 5, generator=generator)
    present = torch.rand(rows, 3, generator=generator) > 0.3
    labels = torch.randint(0, 5, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator)

    def loss(part: slice) -> tuple[float, float, float]:
        found = classification_loss(
            fused[part],
            each[part],
            present[part],
            labels[part],
            weights[part],
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


@settings(max_examples=30, deadline=None)
@given(gamma=st.floats(0.1, 5.0), smoothing=st.floats(0.0, 0.5), seed=st.integers(0, 2**31))
def test_focal_loss_gives_less_to_what_is_right_already(gamma: float, smoothing: float, seed: int) -> None:
    logits = 4 * torch.randn(12, 4, generator=torch.Generator().manual_seed(seed))
    labels, ones = torch.arange(12) % 4, torch.ones(12)
    plain = weighted_cross_entropy(logits, labels, ones, smoothing)
    focal = weighted_cross_entropy(logits, labels, ones, smoothing, gamma)
    assert focal.total < plain.total and focal.weight == plain.weight
    p = logits.double().softmax(dim=1)
    target = torch.full_like(p, smoothing / 4).scatter_add(
        1, labels[:, None], torch.full((12, 1), 1 - smoothing, dtype=p.dtype)
    )
    expected = -(target * (1 - p) ** gamma * p.log()).sum()
    assert torch.allclose(focal.total.double(), expected, rtol=1e-4, atol=1e-5)


def test_focal_loss_of_a_certain_row_has_a_finite_gradient() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    for label in (0, 1):
        loss = weighted_cross_entropy(logits, torch.tensor([label]), torch.ones(1), 0.1, 0.3).total
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


@given(counts=st.lists(st.integers(1, 10**6), min_size=1, max_size=20), beta=st.floats(0, 0.9999))
def test_class_balanced_weights_have_mean_one_and_favour_rare_classes(counts: list[int], beta: float) -> None:
    weights = class_balanced_weights(counts, beta)
    assert sum(weights) == pytest.approx(len(counts))
    pairs = sorted(zip(counts, weights, strict=True))
    assert all(a[1] >= b[1] * (1 - 1e-9) for a, b in itertools.pairwise(pairs))


def test_class_balanced_weights_go_from_alike_to_inverse() -> None:
    assert class_balanced_weights([10, 1000], 0.0) == [1.0, 1.0]
    rare, common = class_balanced_weights([10, 1000], 0.9999999)
    assert rare / common == pytest.approx(100, rel=1e-3)
