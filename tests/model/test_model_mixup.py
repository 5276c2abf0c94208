"""Mixup: partners are neighbours, shares follow Beta and the keys, and targets are mixed as much as features are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xmodal_dist.model.losses import classification_loss
from xmodal_dist.model.mixup import Shares, draw_shares, mix_features, partners


def _keys(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-(2**62), 2**62, (rows,), generator=torch.Generator().manual_seed(seed))


def test_partners_are_neighbours_and_each_others() -> None:
    rows = torch.arange(8)
    assert partners(rows).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert torch.equal(partners(partners(rows)), rows)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0])
def test_shares_are_those_of_the_beta_distribution(alpha: float) -> None:
    shares = draw_shares(_keys(4000), torch.ones(4000, dtype=torch.bool), alpha)
    assert shares.min() >= 0.5 and shares.max() <= 1
    folded = stats.beta(alpha, alpha)

    def cdf(x: np.ndarray) -> np.ndarray:
        return folded.cdf(x) - folded.cdf(1 - x)

    # A share of exactly 1 stands for all that float32 cannot tell from it.
    assert (
        np.abs(np.sort(cdf(shares.double().numpy())) - np.linspace(0, 1, 4000))[
            shares.sort().values < 1
        ].max()
        < 0.04
    )


def test_a_row_s_share_depends_on_its_key_alone_and_padding_is_not_mixed() -> None:
    keys, usable = _keys(6), torch.tensor([True, True, True, False, False, False])
    shares = draw_shares(keys, usable, 0.4)
    assert shares[2:].tolist() == [1.0] * 4
    assert torch.equal(draw_shares(keys[:2], usable[:2], 0.4), shares[:2])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), pairs=st.integers(1, 10))
def test_fields_are_mixed_where_both_have_them_and_targets_accordingly(seed: int, pairs: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = 2 * pairs
    features = torch.randn(rows, 3, 4, generator=generator)
    present = torch.rand(rows, 3, generator=generator) > 0.4
    shown = present & (torch.rand(rows, 3, generator=generator) > 0.3)
    share = draw_shares(_keys(rows, seed), torch.ones(rows, dtype=torch.bool), 0.5)
    mixed, shares = mix_features(features, present, shown, share)
    for i in range(rows):
        j = i ^ 1
        of_fields = []
        for m in range(3):
            both = bool(present[i, m] and present[j, m])
            own = float(share[i]) if both else 1.0
            expected = own * features[i, m] + (1 - own) * features[j, m]
            assert torch.allclose(mixed[i, m], expected, atol=1e-6)
            assert float(shares.fields[i, m]) == pytest.approx(own)
            of_fields += [own] * bool(shown[i, m])
        assert float(shares.fused[i]) == pytest.approx(np.mean(of_fields) if of_fields else 1.0)


def test_the_loss_is_that_of_both_labels_in_their_shares() -> None:
    torch.manual_seed(0)
    fused, each, labels = torch.randn(4, 5), torch.randn(4, 2, 5), torch.tensor([0, 3, 2, 1])
    present, weights = torch.ones(4, 2, dtype=torch.bool), torch.tensor([1.0, 2.0, 0.5, 1.0])
    share = torch.tensor([0.9, 0.6, 1.0, 0.7])
    shares = Shares(share, share[:, None].expand(4, 2))

    def loss(labels: torch.Tensor, weights: torch.Tensor, shares: Shares | None = None) -> torch.Tensor:
        return classification_loss(fused, each, present, labels, weights, shares=shares, aux_weight=0.5).total

    expected = loss(labels, weights * share) + loss(partners(labels), weights * (1 - share))
    found = classification_loss(fused, each, present, labels, weights, shares=shares, aux_weight=0.5)
    assert torch.allclose(found.total, expected, rtol=1e-5)
    assert float(found.weight) == pytest.approx(4.5), "a row weighs what it weighs, however it is mixed"
