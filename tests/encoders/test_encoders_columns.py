"""Encoders of table columns."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from xmodal_dist.encoders.columns import FTTransformer, FTTransformerOptions
from xmodal_dist.modalities import load


def _net(
    num_numeric: int = 2, cardinalities: tuple[int, ...] = (3, 5), dropout: float = 0.5
) -> FTTransformer:
    torch.manual_seed(0)
    return FTTransformer(
        num_numeric, cardinalities, 8, FTTransformerOptions(token_width=16, heads=2, dropout=dropout)
    )


def _rows(count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    numeric = torch.arange(2.0 * count).view(count, 2) - 3
    return numeric, torch.zeros(count, 2, dtype=torch.bool), torch.arange(2 * count).view(count, 2) % 3


def test_a_missing_number_is_a_token_of_its_column() -> None:
    net = _net().eval()
    numeric, missing, ids = _rows()
    missing[:, 0] = True
    other = numeric.clone()
    other[:, 0] = 77.0
    assert torch.equal(net(numeric, missing, ids), net(other, missing, ids))
    zeros = net(numeric * torch.tensor([0.0, 1.0]), torch.zeros_like(missing), ids)
    assert not torch.allclose(net(numeric, missing, ids), zeros)  # missing is not the mean
    swapped = net(numeric, missing.flip(1), ids)
    assert not torch.allclose(net(numeric, missing, ids), swapped)


def test_categories_of_columns_do_not_share_embeddings() -> None:
    net = _net(0, (3, 3)).eval()
    empty = torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)
    first, second = net(*empty, torch.tensor([[1, 2], [2, 1]]))
    assert not torch.allclose(first, second)
    assert net.embed.num_embeddings == 6


@pytest.mark.parametrize(("num_numeric", "cardinalities"), [(0, (4,)), (3, ()), (1, (2, 2))])
def test_any_mix_of_columns(num_numeric: int, cardinalities: tuple[int, ...]) -> None:
    net = _net(num_numeric, cardinalities)
    numeric, missing = torch.zeros(5, num_numeric), torch.zeros(5, num_numeric, dtype=torch.bool)
    features = net(numeric, missing, torch.ones(5, len(cardinalities), dtype=torch.long))
    assert features.shape == (5, 8)
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_dropout_goes_by_key() -> None:
    net, rows = _net().train(), _rows()
    keys = torch.arange(4)
    first, again, others = (net(*rows, k) for k in (keys, keys, keys + 9))
    assert torch.equal(first, again)
    assert not torch.allclose(first, others)
    torch.testing.assert_close(net(*(r[2:3] for r in rows), keys[2:3])[0], first[2], rtol=1e-4, atol=1e-5)
    assert torch.equal(net.eval()(*rows, keys), net(*rows))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match=r"token_width \(10\) must be a multiple of heads \(4\)"):
        load("tabular").settings.model_validate(
            {
                "kind": "tabular",
                "encoder": "ft_transformer",
                "encoder_options": {"token_width": 10, "heads": 4},
            }
        )
