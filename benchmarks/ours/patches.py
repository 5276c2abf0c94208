"""A third party's modality: images with a cheap encoder, so that a model of 224 px images costs less than decoding one.

The encoder is two convolutions, the first over patches of 16 px as in a vision transformer (Dosovitskiy et al. 2021).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from xmodal_dist.batch import Tensors
from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities.image import ImageModality, ImageSettings

__all__ = ["MODALITY", "PatchModality", "PatchSettings"]

_PATCH_PX = 16
_CHANNELS = (32, 64)


class PatchSettings(ImageSettings):
    """Settings of images, under another kind."""

    kind: Literal["benchmarks.ours.patches"] = "benchmarks.ours.patches"  # type: ignore[assignment]


class _Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = _CHANNELS
        self.patches = nn.Conv2d(3, first, _PATCH_PX, stride=_PATCH_PX)
        self.mix = nn.Conv2d(first, second, 3, stride=2)
        self.project = nn.Linear(second, width)

    def forward(self, tensors: Tensors) -> torch.Tensor:
        maps = nn.functional.silu(self.mix(nn.functional.silu(self.patches(tensors["pixels"]))))
        features: torch.Tensor = self.project(maps.mean(dim=(2, 3)))
        return features


class PatchModality(ImageModality):
    """Encoded images, decoded as the package decodes them."""

    kind = "benchmarks.ours.patches"
    settings = PatchSettings

    def encoder(self, settings: ImageSettings, fitted: Fitted, width: int) -> nn.Module:
        """Two convolutions."""
        return _Encoder(width)


MODALITY = PatchModality()
