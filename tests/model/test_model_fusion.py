"""What each of the fusions computes; what all of them promise is in the classifier's tests."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.model.fusion import AttentionFusion, FusionSizes, LateFusion, LowRankFusion

FIELDS, CLASSES, WIDTH, RANK = 3, 4, 8, 2


def _sizes(**changed: int) -> FusionSizes:
    return FusionSizes(FIELDS, CLASSES, WIDTH, 0.0, RANK, 2, 2)._replace(**changed)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_low_rank_fusion_is_the_product_with_the_whole_tensor(seed: int) -> None:
    torch.manual_seed(seed)
    fusion = LowRankFusion(_sizes())
    features = torch.randn(5, FIELDS, WIDTH)
    # [R, H, D + 1] of each field, the constant last; their outer product is the tensor of the paper's full fusion.
    a, b, c = (
        torch.cat([f.weight.view(RANK, WIDTH, WIDTH), f.bias.view(RANK, WIDTH, 1)], dim=2)
        for f in fusion.factors
    )
    tensor = torch.einsum("rhi,rhj,rhk->hijk", a, b, c) / RANK
    x, y, z = (torch.cat([features[:, m], torch.ones(5, 1)], dim=1) for m in range(FIELDS))
    expected = torch.einsum("bi,bj,bk,hijk->bh", x, y, z, tensor)
    found = fusion.embed(features, torch.ones(5, FIELDS, dtype=torch.bool), None)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_an_absent_field_is_left_out_of_the_product() -> None:
    torch.manual_seed(0)
    fusion = LowRankFusion(_sizes())
    features = torch.randn(5, FIELDS, WIDTH)
    present = torch.tensor([True, False, True]).expand(5, -1)
    smaller = LowRankFusion(_sizes(num_fields=2))
    smaller.factors[0], smaller.factors[1] = fusion.factors[0], fusion.factors[2]
    found, expected = (
        fusion.embed(features, present, None),
        smaller.embed(features[:, ::2], present[:, ::2], None),
    )
    assert torch.equal(found, expected)
    assert torch.equal(fusion.embed(features, ~present & False, None), torch.ones(5, WIDTH))


def test_fields_exchange_only_through_the_bottleneck() -> None:
    torch.manual_seed(0)
    both = torch.ones(6, 2, dtype=torch.bool)
    one, other = torch.randn(6, 2, WIDTH), torch.randn(6, 2, WIDTH)
    crossed = torch.stack([one[:, 0], other[:, 1]], 1), torch.stack([other[:, 0], one[:, 1]], 1)
    for layers in (1, 2):
        fusion = AttentionFusion(_sizes(num_fields=2, layers=layers))
        with torch.no_grad():
            for layer in fusion.layers:
                layer.qkv.weight.mul_(4)
        straight = fusion.embed(one, both, None) + fusion.embed(other, both, None)
        swapped = sum(fusion.embed(features, both, None) for features in crossed)
        # One layer only fills the bottleneck: nothing has come back to the fields, whose parts just add up.
        assert torch.allclose(straight, swapped, atol=1e-5) == (layers == 1)


@given(seed=st.integers(0, 1000), num_fields=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_late_fusion_begins_as_the_posterior_of_fields_independent_given_the_class(
    seed: int, num_fields: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    prior = torch.rand(3, generator=generator).log_softmax(dim=0)
    likelihoods = torch.rand(5, num_fields, 3, generator=generator).log()
    fusion = LateFusion(_sizes(num_fields=num_fields, num_classes=3))
    with torch.no_grad():
        fusion.prior.copy_(prior)
    posteriors = (likelihoods + prior).log_softmax(dim=-1)
    present = torch.ones(5, num_fields, dtype=torch.bool)
    fused = fusion(torch.zeros(5, num_fields, WIDTH), posteriors, present, None)
    expected = (likelihoods.sum(dim=1) + prior).softmax(dim=-1)
    assert torch.allclose(fused.softmax(dim=-1), expected, atol=1e-5)
