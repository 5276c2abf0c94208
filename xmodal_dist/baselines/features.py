"""What classical models see of a record: standard features of each kind of field, before anything is fitted.

| kind | features |
| --- | --- |
| image | histograms of oriented gradients (Dalal and Triggs 2005), 12 x 12 colour pixels, a colour histogram |
| audio | mean and deviation over time of log-mel bands, and their mean in each quarter of the recording |
| text | the text, for TF-IDF and counts of words and character n-grams |
| tabular | standardised numbers, flags of what is missing, one-hot categories |
| any other | image features of whatever pictures it decodes to, mean and deviation over them; its ``measures`` |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from xmodal_dist.batch import Arrays
from xmodal_dist.errors import UsageError
from xmodal_dist.modalities.audio import mel_filters
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.modalities.samples import FULL_SCALE

__all__ = ["TEXTS", "Blocks", "Recipe", "extract", "picture_features", "recipe_of"]

Blocks = dict[str, NDArray[Any]]
"""Named groups of features of n records, each [n, d]; :data:`TEXTS` alone is [n] strings."""

TEXTS = "texts"

_SIDE_PX, _CELLS, _ORIENTATIONS, _SMALL_PX, _SHADES = 64, 8, 9, 12, 4
_HOG_CLIP, _HOG_EPSILON = 0.2, 1e-3
_QUARTERS = 4
_FLOOR = 8.0
_PICTURES_AT_ONCE, _SAMPLES_AT_ONCE = 256, 4_000_000


class Recipe(NamedTuple):
    """Features of a kind: how they are made, and what they are in words."""

    extract: Callable[[FieldSpec, Arrays, Sequence[pa.Array]], Blocks]
    words: str


def extract(spec: FieldSpec, arrays: Arrays, columns: Sequence[pa.Array]) -> Blocks:
    """Features of n records of a field; what comes of rows of missing values is of no use.

    Args:
        spec: the field.
        arrays: what its modality decoded, without random keys.
        columns: its columns, each of length n.

    Raises:
        UsageError: its kind is unknown here and gives neither pictures nor measures.
    """
    return recipe_of(spec).extract(spec, arrays, columns)


def recipe_of(spec: FieldSpec) -> Recipe:
    """The recipe of a field's kind."""
    return _RECIPES.get(spec.settings.kind, _OTHER)


def _image(spec: FieldSpec, arrays: Arrays, columns: Sequence[pa.Array]) -> Blocks:
    return picture_features(arrays["pixels"])


def _audio(spec: FieldSpec, arrays: Arrays, columns: Sequence[pa.Array]) -> Blocks:
    at_once = max(1, _SAMPLES_AT_ONCE // arrays["samples"].shape[1])
    samples, length = torch.from_numpy(arrays["samples"]), torch.from_numpy(arrays["length"])
    parts = [
        _mel_statistics(samples[start : start + at_once], length[start : start + at_once], spec)
        for start in range(0, len(samples), at_once)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _text(spec: FieldSpec, arrays: Arrays, columns: Sequence[pa.Array]) -> Blocks:
    texts = np.empty(len(columns[0]), dtype=object)
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    texts[:] = ["\n".join(_string(value) for value in row if value is not None) for row in rows]
    return {TEXTS: texts}


def _tabular(spec: FieldSpec, arrays: Arrays, columns: Sequence[pa.Array]) -> Blocks:
    categories = [column["categories"] for column in spec.fitted.values["columns"] if "categories" in column]
    # 0 is missing and 1 unknown: each gets a column of its own.
    one_hot = [
        np.eye(2 + len(known), dtype=np.float32)[ids]
        for known, ids in zip(categories, arrays["categorical"].T, strict=True)
    ]
    blocks = {"numbers": arrays["numeric"], "missing": arrays["missing"].astype(np.float32)}
    if one_hot:
        blocks["categories"] = np.concatenate(one_hot, axis=1)
    return {name: block for name, block in blocks.items() if block.shape[1]}


def _other(spec: FieldSpec, arrays: Arrays, columns: Sequence[pa.Array]) -> Blocks:
    blocks: Blocks = {}
    for name, array in arrays.items():
        if array.dtype == np.uint8 and array.ndim >= 4 and array.shape[-1] == 3:
            blocks |= {f"{name} {part}": values for part, values in _many_pictures(array).items()}
    measures = spec.modality.measures(spec.settings, spec.fitted, arrays)
    for name, values in measures.items():
        known = np.isfinite(values)
        blocks[name] = np.stack([np.where(known, values, 0), ~known], axis=1).astype(np.float32)
    if not blocks:
        raise UsageError(
            f"field {spec.name!r}: there are no classical features for fields of kind {spec.settings.kind!r}, "
            "which decodes to no pictures and has no measures; leave it out with --fields"
        )
    return blocks


_RECIPES = {
    "image": Recipe(_image, "HOG, 12 x 12 colour pixels, colour histogram"),
    "audio": Recipe(_audio, "mean and deviation of log-mel bands, mean of each quarter"),
    "text": Recipe(
        _text, "TF-IDF of words and character n-grams; counts of words for multinomial naive Bayes"
    ),
    "tabular": Recipe(_tabular, "standardised numbers, missing flags, one-hot categories"),
}
_OTHER = Recipe(_other, "image features of its pictures, mean and deviation; its measures")


def picture_features(pixels: NDArray[Any]) -> Blocks:
    """Three blocks of non-negative features of pictures.

    Args:
        pixels: [n, H, W, 3] uint8 RGB, n >= 1; scaled to 64 x 64 first.

    Returns:
        ``hog`` [n, 1764]: 9 unsigned orientations in cells of 8 x 8, blocks of 2 x 2 cells, L2-Hys; ``pixels`` [n, 432]
        in [0, 1]; ``colours`` [n, 64]: square root of the share of each of 4 x 4 x 4 colours.
    """
    starts = range(0, len(pixels), _PICTURES_AT_ONCE)
    parts = [_few_pictures(pixels[start : start + _PICTURES_AT_ONCE]) for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _few_pictures(pixels: NDArray[Any]) -> Blocks:
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    if planes.shape[2:] != (_SIDE_PX, _SIDE_PX):
        planes = F.interpolate(planes, (_SIDE_PX, _SIDE_PX), mode="bilinear", antialias=True).clamp(0, 1)
    small = F.adaptive_avg_pool2d(planes, _SMALL_PX).flatten(1)
    shades = (planes * _SHADES).long().clamp(max=_SHADES - 1)
    colours = ((shades[:, 0] * _SHADES + shades[:, 1]) * _SHADES + shades[:, 2]).flatten(1)
    counts = torch.zeros(len(planes), _SHADES**3).scatter_add_(
        1, colours, torch.ones(colours.shape, dtype=torch.float32)
    )
    grey = (planes * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1)
    return {
        "hog": _hog(grey).numpy(),
        "pixels": small.numpy(),
        "colours": (counts / _SIDE_PX**2).sqrt().numpy(),
    }


def _hog(grey: torch.Tensor) -> torch.Tensor:
    """[n, 64, 64] to [n, 1764]: histograms of oriented gradients (Dalal and Triggs 2005)."""
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    dx = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    dy = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    size = torch.hypot(dx, dy)
    # Place among the bins' centres; each gradient is shared between the two next to it, and the last is next to the
    # first.
    angle = torch.atan2(dy, dx) / torch.pi % 1 * _ORIENTATIONS
    histograms = []
    for orientation in range(_ORIENTATIONS):
        away = (angle - orientation).abs()
        away = torch.minimum(away, _ORIENTATIONS - away)
        histograms.append(F.avg_pool2d(size * (1 - away).clamp(min=0), _SIDE_PX // _CELLS))
    cells = torch.stack(histograms, dim=-1)
    blocks = torch.cat([cells[:, :-1, :-1], cells[:, :-1, 1:], cells[:, 1:, :-1], cells[:, 1:, 1:]], dim=-1)
    blocks = blocks / (blocks.square().sum(dim=-1, keepdim=True) + _HOG_EPSILON**2).sqrt()
    blocks = blocks.clamp(max=_HOG_CLIP)
    blocks = blocks / (blocks.square().sum(dim=-1, keepdim=True) + _HOG_EPSILON**2).sqrt()
    return blocks.flatten(1)


def _many_pictures(pictures: NDArray[Any]) -> Blocks:
    """Mean and deviation over the pictures of each record, [n, ..., H, W, 3]."""
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    count = len(flat) // len(pictures)
    blocks = picture_features(flat)
    if count == 1:
        return blocks
    shaped = {name: block.reshape(len(pictures), count, -1) for name, block in blocks.items()}
    means = {f"{name} mean": block.mean(axis=1) for name, block in shaped.items()}
    return means | {f"{name} deviation": block.std(axis=1) for name, block in shaped.items()}


def _mel_statistics(samples: torch.Tensor, length: torch.Tensor, spec: FieldSpec) -> Blocks:
    """Statistics of log10 mel power, less its mean, over the frames of recordings [n, N] int16 that hold sound."""
    settings: Any = spec.settings
    rate_hz = spec.fitted.values["sample_rate_hz"]
    window, hop = (max(2, round(s * rate_hz)) for s in (settings.window_s, settings.hop_s))
    spectrum = torch.stft(
        samples.float() / FULL_SCALE,
        n_fft=2 ** int(np.ceil(np.log2(window)) + 1),
        hop_length=hop,
        win_length=window,
        window=torch.hann_window(window),
        pad_mode="constant",
        return_complex=True,
    )
    filters = mel_filters(rate_hz, spectrum.shape[1], settings.num_mels)
    mel = torch.log10(torch.matmul(filters, spectrum.abs().square()).clamp(min=1e-10))
    mel = torch.maximum(mel, mel.amax(dim=(1, 2), keepdim=True) - _FLOOR)
    at = torch.arange(mel.shape[2])[None] * hop
    inside = at < length.clamp(min=1)[:, None]
    mel = mel - _mean(mel, inside).mean(dim=1)[:, None, None]
    mean = _mean(mel, inside)
    deviation = _mean((mel - mean[:, :, None]).square(), inside).sqrt()
    quarter = at * _QUARTERS // length.clamp(min=1)[:, None]
    quarters = torch.cat([_mean(mel, quarter == q) for q in range(_QUARTERS)], dim=1)
    return {"mean": mean.numpy(), "deviation": deviation.numpy(), "quarters": quarters.numpy()}


def _mean(values: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """[n, bands, frames] to [n, bands], over the frames ``inside`` [n, frames]; 0 where there is none."""
    weight = inside[:, None].float()
    return (values * weight).sum(dim=2) / weight.sum(dim=2).clamp(min=1)


def _string(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
