"""The plain CNN of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.encoders.networks import Field
from xmodal_dist.encoders.pixels import PlainConvEncoder, PlainConvOptions


def _net(side_px: int, **options: Any) -> PlainConvEncoder:
    torch.manual_seed(0)
    return PlainConvEncoder(side_px, 8, PlainConvOptions(**options))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("relu", nn.ReLU), ("silu", nn.SiLU), ("gelu", nn.GELU), ("tanh", nn.Tanh), ("elu", nn.ELU)]
    + [("leaky_relu", nn.LeakyReLU)],
)
def test_activation_is_the_one_named(name: str, kind: type[nn.Module]) -> None:
    net = _net(16, activation=name, channels=(4, 4))
    assert sum(isinstance(module, kind) for module in net.modules()) == 3
    assert net(torch.randn(2, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize("side_px", [8, 9, 28, 33, 100])
@pytest.mark.parametrize("channels", [(4,), (4, 8, 8), (4,) * 8])
def test_any_size_and_depth(side_px: int, channels: tuple[int, ...]) -> None:
    net = _net(side_px, channels=channels)
    assert net(torch.zeros(1, 3, side_px, side_px)).shape == (1, 8)
    dense = net.hidden[0]
    assert isinstance(dense, nn.Linear)
    assert dense.in_features <= 16 * channels[-1]


def test_dropout_goes_by_key_and_only_in_training() -> None:
    net, x, keys = _net(16, dropout=0.5).train(), torch.randn(3, 3, 16, 16), torch.arange(3)
    assert torch.equal(net(x, keys), net(x, keys))
    assert not torch.equal(net(x, keys), net(x, keys + 5))
    assert torch.equal(net.eval()(x, keys), net(x))


def test_unknown_options_and_activations_are_refused() -> None:
    for options, said in (
        ({"activation": "swish"}, "activation"),
        ({"kernel": 4}, "kernel"),
        ({"depth": 2}, "depth"),
    ):
        with pytest.raises(ValidationError, match=said):
            Field.of("image", encoder="plain_cnn", encoder_options=options)
