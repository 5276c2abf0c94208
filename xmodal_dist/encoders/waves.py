"""Convolutions over raw sound: ``wave`` [B, N], full scale 1, and ``length`` [B], where the sound ends, in samples.

Legend of tensor shapes: B rows, N samples, C channels, T frames.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders.base import Architecture, Request
from xmodal_dist.settings import Settings

__all__ = ["WAVE_ENCODERS", "WaveEncoder", "WaveOptions", "mask_of", "mean_within", "standardise"]

_FRAMES_PER_S = 2000
_STRIDE = 4
_KERNEL = 9
_CHANNELS_PER_GROUP = 16
_SILENCE = 1e-3


def mask_of(length: torch.Tensor, count: int) -> torch.Tensor:
    """[B, count] bool, True at the first ``length`` [B] places."""
    return torch.arange(count, device=length.device) < length[:, None]


def mean_within(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``x`` [B, T, C] over the frames of ``mask`` [B, T], [B, C]; zeros where there are none."""
    inside = mask.unsqueeze(-1)
    return (x * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)


def standardise(wave: torch.Tensor, mask: torch.Tensor, eps: float = 1e-7) -> torch.Tensor:
    """Mean 0 and variance 1 over the samples of ``mask`` [B, N], per record; zeros beyond."""
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    centred = (wave - (wave * mask).sum(dim=1, keepdim=True) / count) * mask
    return centred / (centred.square().sum(dim=1, keepdim=True) / count + eps).sqrt()


class WaveOptions(Settings):
    """Options of the convolutions over raw sound."""

    window_s: float = Field(0.010, gt=0, le=0.1)
    """Length of the first convolution's kernels."""
    channels: tuple[Annotated[int, Field(ge=1, le=2048)], ...] = Field(
        (64, 64, 128, 256), min_length=1, max_length=8
    )
    """Output channels of each stage; the first makes 2,000 frames a second, each further one a quarter as many."""


class _Stage(nn.Module):
    """1-D convolution, GroupNorm over the frames that hold sound, SiLU; zeros where there is none."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.scale = nn.Parameter(torch.ones(out_channels, 1))
        self.shift = nn.Parameter(torch.zeros(out_channels, 1))
        size = _CHANNELS_PER_GROUP
        self.groups = out_channels // size if out_channels % size == 0 else 1
        self.stride = stride

    def forward(self, x: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` [B, C, T], zeros from ``length`` [B] on -> the same of the next stage."""
        length = (length + self.stride - 1) // self.stride
        y = self.conv(x)
        mask = mask_of(length, y.shape[2]).unsqueeze(1)
        # In float32 and about the mean: sums over thousands of frames.
        grouped = y.float().unflatten(1, (self.groups, -1))
        inside = mask.unsqueeze(1)
        count = (inside.sum(dim=(2, 3), keepdim=True) * grouped.shape[2]).clamp(min=1)
        grouped = grouped - (grouped * inside).sum(dim=(2, 3), keepdim=True) / count
        variance = (grouped * inside).square().sum(dim=(2, 3), keepdim=True) / count
        normal = (grouped * (variance + 1e-5).rsqrt()).flatten(1, 2).to(y.dtype)
        return F.silu(normal * self.scale + self.shift) * mask, length


class WaveEncoder(nn.Module):
    """1-D convolutions over the waveform, as M5 (Dai et al. 2017, arXiv:1610.00087), strided where M5 pools.

    The first kernels are some milliseconds long and learn band-pass filters. Each recording is brought to mean 0 and
    variance 1 first; norms, mean and maximum are taken over the frames that hold sound, so padding changes nothing.

    Args:
        rate_hz: samples a second.
        width: features per row.
        options: sizes.
    """

    def __init__(self, rate_hz: int, width: int, options: WaveOptions) -> None:
        super().__init__()
        first = max(3, round(options.window_s * rate_hz) | 1)  # odd: a frame is centred on its sample
        sizes = [(first, max(1, round(rate_hz / _FRAMES_PER_S)))]
        sizes += [(_KERNEL, _STRIDE)] * (len(options.channels) - 1)
        ins = (1, *options.channels[:-1])
        self.stages = nn.ModuleList(
            _Stage(before, after, kernel, stride)
            for before, after, (kernel, stride) in zip(ins, options.channels, sizes, strict=True)
        )
        self.norm = nn.LayerNorm(2 * options.channels[-1])
        self.project = nn.Linear(2 * options.channels[-1], width)

    def forward(self, wave: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Features [B, width] of ``wave`` [B, N], what lies beyond ``length`` [B] left out; a length of 0 is legal."""
        x = standardise(wave, mask_of(length, wave.shape[1]), _SILENCE**2).unsqueeze(1)
        for stage in self.stages:
            x, length = stage(x, length)
        mask = mask_of(length, x.shape[2])
        peak = x.masked_fill(~mask.unsqueeze(1), -1e4).amax(dim=2) * mask.any(dim=1, keepdim=True)
        pooled = torch.cat([mean_within(x.transpose(1, 2), mask), peak], dim=1)
        features: torch.Tensor = self.project(self.norm(pooled))
        return features


class _Encoder(nn.Module):
    def __init__(self, net: WaveEncoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, tensors: Tensors) -> torch.Tensor:
        features: torch.Tensor = self.net(tensors["wave"], tensors["length"])
        return features


def _wave_cnn(request: Request) -> nn.Module:
    assert isinstance(request.options, WaveOptions)
    return _Encoder(WaveEncoder(request.values["sample_rate_hz"], request.width, request.options))


WAVE_ENCODERS = (
    Architecture(
        "wave_cnn",
        "1-D convolutions over the raw waveform",
        WaveOptions,
        _wave_cnn,
        inputs=frozenset({"wave"}),
    ),
)
