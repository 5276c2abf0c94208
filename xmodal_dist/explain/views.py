"""What the model sees of a record's picture, sound or clip, as pixels to draw heat maps on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["View", "view_of"]

_WAVE_HEIGHT_PX, _WAVE_WIDTH_PX = 64, 320


@dataclass(frozen=True)
class View:
    """A value as the model sees it.

    Attributes:
        name: of the tensor that it was drawn from, for example ``spectrogram``.
        frames: [T, H, W, 3] of pictures; [T, H, W] of one channel, dark = much. uint8.
        upward: whether the first row belongs at the bottom, as the lowest band of a spectrogram.
    """

    name: str
    frames: NDArray[np.uint8]
    upward: bool = False


def view_of(decoded: Mapping[str, torch.Tensor], transformed: Mapping[str, torch.Tensor]) -> View | None:
    """The view of one record's value; None if its tensors are neither pixels, maps nor waves.

    Args:
        decoded: what its modality decoded, without a batch dimension.
        transformed: what its encoder is given.
    """
    for name, pixels in decoded.items():
        if pixels.dtype == torch.uint8 and pixels.dim() in (3, 4) and pixels.shape[-1] == 3:
            frames: NDArray[np.uint8] = pixels.cpu().numpy()
            return View(name, frames if frames.ndim == 4 else frames[None])
    real = {name: x for name, x in transformed.items() if x.is_floating_point()}
    if not real:
        return None
    name = max(real, key=lambda key: real[key].numel())
    values: NDArray[Any] = real[name].float().cpu().numpy()
    while values.ndim > 1 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 2:
        return View(name, _inked(values)[None], upward=True)
    return View(name, _wave(values)[None]) if values.ndim == 1 and len(values) > _WAVE_WIDTH_PX else None


def _inked(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Smallest white, largest black."""
    low, high = float(values.min()), float(values.max())
    return np.uint8(255) - (255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)


def _wave(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """Least to greatest value of equal runs of samples, as black columns on white."""
    runs = np.array_split(samples / max(float(abs(samples).max()), 1e-12), _WAVE_WIDTH_PX)
    low, high = (np.array([edge(run) for run in runs]) for edge in (np.min, np.max))
    heights = np.linspace(1, -1, _WAVE_HEIGHT_PX)[:, None]
    step = 2 / _WAVE_HEIGHT_PX
    inked = (heights <= high + step) & (heights >= low - step)
    return np.where(inked, np.uint8(60), np.uint8(255))
