"""Pictures on their way to the model: cropped and resized on the host, moved and coloured at random on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.nn import functional as F

from xmodal_dist.randomness import uniform_like
from xmodal_dist.settings import Settings

__all__ = ["ON_DEVICE", "AugmentSettings", "Box", "augment", "crop_box", "luma", "resize"]

_STREAM_AFFINE = 102
_STREAM_COLOUR = 103
_STREAM_FLIP = 104
_LUMA = (np.float32(0.299), np.float32(0.587), np.float32(0.114))

ON_DEVICE = frozenset({"rotation_deg", "scale", "shift", "colour_jitter", "flip_probability"})
"""The settings of :class:`AugmentSettings` that :func:`augment` applies; the others are of the crop, on the host."""

Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


class AugmentSettings(Settings):
    """How pictures are cropped, moved and coloured in training."""

    crop_scale_min: float = Field(0.8, gt=0, le=1)
    """Smallest share of the area that a random crop keeps; 1 with ``crop_ratio_max`` 1 is the centre crop."""
    crop_ratio_max: float = Field(1.15, ge=1, le=4)
    """Largest aspect ratio of a random crop (the smallest is its inverse)."""
    rotation_deg: float = Field(10.0, ge=0, le=180)
    """Random rotation up to this angle to either side."""
    scale: float = Field(0.1, ge=0, lt=1)
    """Random zoom by exp(+-scale)."""
    shift: float = Field(0.05, ge=0, le=0.5)
    """Random shift up to this share of the side, to each side."""
    colour_jitter: float = Field(0.2, ge=0, lt=1)
    """Brightness, contrast and saturation change by up to this factor each."""
    flip_probability: float = Field(0.0, ge=0, le=1)
    """Chance of mirroring left and right; 0 by default, since it changes digits, arrows and text."""

    @property
    def crops(self) -> bool:
        """Whether a crop is a random one."""
        return self.crop_scale_min < 1 or self.crop_ratio_max > 1

    @property
    def augments(self) -> bool:
        """Whether anything is done at random."""
        return self.crops or any(getattr(self, name) for name in ON_DEVICE)


def crop_box(height: int, width: int, numbers: Sequence[float] | None, settings: AugmentSettings) -> Box:
    """The centre square; with 4 uniform ``numbers`` a random box (as in Szegedy et al. 2015) inside the picture.

    Where the settings leave a crop no choice of size and ratio, it is the centre square with numbers too.
    """
    side = min(height, width)
    if numbers is None or not settings.crops:
        return (height - side) // 2, (width - side) // 2, side, side
    area = side**2 * (settings.crop_scale_min + (1 - settings.crop_scale_min) * numbers[0])
    ratio = settings.crop_ratio_max ** (2 * numbers[1] - 1)
    box_height = min(height, max(1, round(math.sqrt(area / ratio))))
    box_width = min(width, max(1, round(math.sqrt(area * ratio))))
    top = int(numbers[2] * (height - box_height + 1))
    left = int(numbers[3] * (width - box_width + 1))
    return top, left, box_height, box_width


def resize(image: NDArray[np.uint8], box: Box, out: NDArray[np.uint8]) -> None:
    """The box of [H, W, 3] at the size of ``out`` [size, size, 3], antialiased bilinear, written there."""
    top, left, height, width = box
    crop = image[top : top + height, left : left + width]
    if crop.shape == out.shape:
        out[:] = crop
        return
    # PyTorch takes no read-only array, and no negative stride even where a side is 1.
    if not (crop.flags.c_contiguous and crop.flags.writeable) or min(crop.strides) < 0:
        crop = crop.copy(order="C")
    # PyTorch's uint8 channels-last kernel is within 1 level of Pillow's resize and three times as fast. Called through
    # F.interpolate it writes planes into memory of its own, and interleaving those costs as much again.
    torch.ops.aten._upsample_bilinear2d_aa.out(
        _planes(crop), out.shape[:2], False, None, None, out=_planes(out)
    )


def _planes(image: NDArray[np.uint8]) -> torch.Tensor:
    """[H, W, 3] seen as [1, 3, H, W]."""
    return torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[..., 3] RGB to luma (ITU-R BT.601), 0 to 255."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    found: NDArray[np.float32] = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]
    return found


def augment(x: torch.Tensor, keys: torch.Tensor, settings: AugmentSettings) -> torch.Tensor:
    """Move and colour ``x`` [B, 3, H, W], 0 to 255, by ``keys`` [B] int64; equal keys do the same. Changes ``x``."""
    return _jitter_colour(_move(x, keys, settings), keys, settings.colour_jitter)


def _move(x: torch.Tensor, keys: torch.Tensor, settings: AugmentSettings) -> torch.Tensor:
    """Random rotation, zoom, shift and mirroring as one affine resampling; outside is the nearest edge pixel."""
    strengths = (settings.rotation_deg, settings.scale, settings.shift, settings.flip_probability)
    if not any(strengths):
        return x
    numbers = uniform_like(keys, _STREAM_AFFINE, 4) * 2 - 1
    angle = numbers[:, 0] * math.radians(settings.rotation_deg)
    zoom = torch.exp(numbers[:, 1] * settings.scale)
    shift = numbers[:, 2:] * 2 * settings.shift  # grid coordinates run from -1 to 1: a side is 2
    mirror = 1 - 2 * (uniform_like(keys, _STREAM_FLIP, 1)[:, 0] < settings.flip_probability).to(x.dtype)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [
        torch.stack([cos * mirror, -sin, shift[:, 0]], 1),
        torch.stack([sin * mirror, cos, shift[:, 1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _jitter_colour(x: torch.Tensor, keys: torch.Tensor, strength: float) -> torch.Tensor:
    """Brightness b, contrast c around the image's mean, saturation s around each pixel's grey; changes ``x``.

    One after the other they are s c b x + (1 - s) c b grey + (1 - c) b mean.
    """
    if strength == 0:
        return x
    factors = 1 + (uniform_like(keys, _STREAM_COLOUR, 3) * 2 - 1) * strength
    brightness, contrast, saturation = (f.view(-1, 1, 1, 1) for f in factors.unbind(1))
    grey = x.mean(dim=1, keepdim=True)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    gain = contrast * brightness
    offset = grey * ((1 - saturation) * gain) + (1 - contrast) * brightness * mean
    return x.mul_(saturation * gain).add_(offset).clamp_(0, 255)
