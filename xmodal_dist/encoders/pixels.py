"""Encoders of images, [B, 3, H, W] in ``pixels``, and of spectrograms, [B, 1, mels, frames] in ``spectrogram``.

Legend of tensor shapes: B rows, C channels, H W pixels (or mel bands and frames), D width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders.base import Architecture, Request
from xmodal_dist.encoders.dropout import RecordDropout
from xmodal_dist.encoders.vision import VISION_ENCODERS
from xmodal_dist.settings import Settings

__all__ = ["IMAGE_ENCODERS", "SPECTROGRAM_ENCODERS", "ConvEncoder", "PlainConvEncoder", "PlainConvOptions"]

_CHANNELS_PER_GROUP = 16
_STREAM_DENSE = 312
_MAX_GRID = 4
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
}


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


class PlainConvOptions(Settings):
    """Options of the plain CNN."""

    activation: Literal["relu", "silu", "gelu", "tanh", "elu", "leaky_relu"] = "relu"
    """What stands behind each convolution and the hidden dense layer."""
    channels: tuple[Annotated[int, Field(ge=1, le=2048)], ...] = Field(
        (32, 64, 128), min_length=1, max_length=8
    )
    """Output channels of each stage: a convolution, then pooling that halves height and width."""
    kernel: Literal[1, 3, 5, 7, 9, 11] = 3
    """Side of every convolution."""
    dense_units: int = Field(256, ge=1, le=8192)
    """Width of the hidden dense layer."""
    dropout: float = Field(0.25, ge=0, lt=1)
    """Share of the values that training leaves out before each dense layer."""


class PlainConvEncoder(nn.Module):
    """The classic small CNN: stages of convolution, activation and 2x2 maximum pooling; dropout, two dense layers.

    In the manner of LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition"). What the
    stages leave is averaged to at most 4 x 4 places, so that the dense layer's size does not grow with the image's.

    Args:
        side_px: height and width of the input.
        width: features per row.
        options: sizes, activation and dropout.
    """

    def __init__(self, side_px: int, width: int, options: PlainConvOptions) -> None:
        super().__init__()
        activation = _ACTIVATIONS[options.activation]
        stages: list[nn.Module] = []
        side, previous = side_px, 3
        for count in options.channels:
            conv = nn.Conv2d(previous, count, options.kernel, padding="same")
            nn.init.kaiming_normal_(conv.weight)
            stages += [conv, activation(), nn.MaxPool2d(2, ceil_mode=True)]
            side, previous = -(-side // 2), count
        window = -(-side // _MAX_GRID)
        grid = -(-side // window)
        self.stages = nn.Sequential(
            *stages, nn.AvgPool2d(window, ceil_mode=True, count_include_pad=False), nn.Flatten()
        )
        self.drop_maps = RecordDropout(options.dropout, _STREAM_DENSE)
        self.hidden = nn.Sequential(nn.Linear(previous * grid * grid, options.dense_units), activation())
        self.drop_hidden = RecordDropout(options.dropout, _STREAM_DENSE + 1)
        self.project = nn.Linear(options.dense_units, width)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Features [B, width] of ``x`` [B, 3, side, side], normalised; ``keys`` [B] int64 for dropout in training."""
        maps = self.drop_maps(self.stages(x), keys)
        features: torch.Tensor = self.project(self.drop_hidden(self.hidden(maps), keys))
        return features


class _Named(nn.Module):
    """A network on one of a field's tensors."""

    def __init__(self, tensor: str, net: nn.Module) -> None:
        super().__init__()
        self.tensor, self.net = tensor, net

    def forward(self, tensors: Tensors) -> torch.Tensor:
        features: torch.Tensor = self.net(tensors[self.tensor])
        return features


def _image_cnn(request: Request) -> nn.Module:
    return _Named("pixels", ConvEncoder(3, request.width))


class _Plain(nn.Module):
    def __init__(self, net: PlainConvEncoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, tensors: Tensors) -> torch.Tensor:
        features: torch.Tensor = self.net(tensors["pixels"], tensors.get("keys"))
        return features


def _plain_cnn(request: Request) -> nn.Module:
    assert isinstance(request.options, PlainConvOptions)
    return _Plain(PlainConvEncoder(request.values["size_px"], request.width, request.options))


def _spectrogram_cnn(request: Request) -> nn.Module:
    return _Named("spectrogram", ConvEncoder(1, request.width))


IMAGE_ENCODERS = (
    Architecture("cnn", "small residual CNN, trained from nothing", Settings, _image_cnn),
    Architecture(
        "plain_cnn",
        "convolution, pooling, dropout, dense; activation selectable",
        PlainConvOptions,
        _plain_cnn,
    ),
    *VISION_ENCODERS,
)
SPECTROGRAM_ENCODERS = (
    Architecture("cnn", "small residual CNN on the log-mel spectrogram", Settings, _spectrogram_cnn),
)
