"""Heat maps: on encoders of any make they find the place that the class comes from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tests.explain.models import classifier
from xmodal_dist.batch import Tensors
from xmodal_dist.encoders.pixels import ConvEncoder
from xmodal_dist.explain.maps import GRAD_CAM, SALIENCY, heat_maps
from xmodal_dist.explain.views import view_of

WIDTH = 8


class _Of(nn.Module):
    """An encoder of the tensor ``x``."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tensors: Tensors) -> torch.Tensor:
        features: torch.Tensor = self.net(tensors["x"])
        return features


class _Residual(nn.Module):
    """As ResNet's blocks: sum and activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = (
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        y += x
        out: torch.Tensor = self.act(y)
        return out


class _Frames(nn.Module):
    """A picture encoder over the frames of clips [B, T, C, H, W], mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = ConvEncoder(3, WIDTH, (8, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frame(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(dim=1)


def _vgg() -> nn.Module:
    convs = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU(True)]
    return nn.Sequential(nn.Sequential(*convs), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, WIDTH))


def _resnet() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(True))
    return nn.Sequential(stem, _Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, WIDTH))


def _wave() -> nn.Module:
    convs = nn.Sequential(nn.Conv1d(1, 4, 9, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(16))
    return nn.Sequential(nn.Unflatten(1, (1, -1)), convs, nn.Flatten(), nn.Linear(64, WIDTH))


def _volume() -> nn.Module:
    convs = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.ReLU())
    return nn.Sequential(convs, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, WIDTH))


def _dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, WIDTH))


PICTURE, WAVE, CLIP, VOLUME = (3, 12, 12), (400,), (4, 3, 12, 12), (3, 4, 12, 12)


@pytest.mark.parametrize(
    ("make", "shape", "method", "places"),
    [
        (lambda: ConvEncoder(3, WIDTH, (8, 16)), PICTURE, GRAD_CAM, (1, 3, 3)),
        (_vgg, PICTURE, GRAD_CAM, (1, 4, 4)),
        (_resnet, PICTURE, GRAD_CAM, (1, 6, 6)),
        (_wave, WAVE, GRAD_CAM, (1, 1, 16)),
        (_Frames, CLIP, GRAD_CAM, (4, 3, 3)),
        (_volume, VOLUME, GRAD_CAM, (4, 12, 12)),
        (_dense, PICTURE, SALIENCY, (1, 12, 12)),
        (lambda: nn.Linear(400, WIDTH), WAVE, SALIENCY, (1, 1, 32)),
    ],
)
def test_any_encoder_has_a_map_of_each_record_alone(
    make: Callable[[], nn.Module], shape: tuple[int, ...], method: str, places: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = classifier({"a": _Of(make().eval())}, WIDTH)
    x, present, labels = torch.randn(3, *shape), torch.ones(3, 1, dtype=torch.bool), torch.tensor([0, 1, 2])
    heat = heat_maps(model, {"a": {"x": x}}, present, labels, ["a"])["a"]
    assert heat.method == method and heat.maps.shape == (3, *places)
    assert (heat.maps >= 0).all() and np.isfinite(heat.maps).all() and heat.maps.max() > 0
    alone = heat_maps(model, {"a": {"x": x[1:2]}}, present[:1], labels[1:2], ["a"])["a"]
    assert np.allclose(alone.maps[0], heat.maps[1], rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_the_map_is_hot_where_the_class_is() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3)[:, :, None, None])
    model = classifier({"a": _Of(nn.Sequential(net, nn.Linear(3, WIDTH)))}, WIDTH)
    with torch.no_grad():
        x = torch.zeros(2, 3, 8, 8)
        x[0, 0, 1, 6], x[1, 1, 5, 2] = 4.0, 4.0
    present = torch.ones(2, 1, dtype=torch.bool)
    labels = model({"a": {"x": x}}, present).fused.argmax(dim=1)
    heat = heat_maps(model, {"a": {"x": x}}, present, labels, ["a"])["a"].maps
    for row, place in ((0, (1, 6)), (1, (5, 2))):
        hottest = np.unravel_index(heat[row, 0].argmax(), (8, 8))
        assert heat[row].max() == 0 or hottest == place
    assert heat.max() > 0


def test_an_encoder_without_gradients_is_left_out_and_absent_fields_stay_cold() -> None:
    class Frozen(nn.Module):
        def forward(self, tensors: Tensors) -> torch.Tensor:
            with torch.no_grad():
                return tensors["x"].flatten(1)[:, :WIDTH]

    model = classifier({"a": Frozen(), "b": _Of(_vgg())}, WIDTH)
    x, present = torch.randn(2, 3, 12, 12), torch.tensor([[True, True], [True, False]])
    found = heat_maps(model, {"a": {"x": x}, "b": {"x": x}}, present, torch.tensor([0, 1]), ["a", "b"])
    assert set(found) == {"b"} and found["b"].maps[1].max() == 0


def test_views_show_pixels_maps_and_waves() -> None:
    pixels = torch.randint(0, 255, (5, 6, 3), dtype=torch.uint8)
    found = view_of({"pixels": pixels}, {"pixels": torch.randn(3, 5, 6)})
    assert found is not None and (found.frames[0] == pixels.numpy()).all() and not found.upward
    clip = view_of({"frames": torch.zeros(4, 5, 6, 3, dtype=torch.uint8)}, {})
    assert clip is not None and clip.frames.shape == (4, 5, 6, 3)
    mel = view_of(
        {"samples": torch.zeros(9, dtype=torch.int16)}, {"spectrogram": torch.arange(12.0).view(1, 3, 4)}
    )
    assert mel is not None and mel.upward and mel.frames.shape == (1, 3, 4)
    assert mel.frames[0, 0, 0] == 255 and mel.frames[0, 2, 3] == 0
    wave = view_of({}, {"wave": torch.sin(torch.arange(4000.0))})
    assert wave is not None and wave.frames.ndim == 3 and set(np.unique(wave.frames)) == {60, 255}
    assert view_of({"ids": torch.arange(4)}, {"ids": torch.arange(4)}) is None
