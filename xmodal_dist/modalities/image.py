"""Images: JPEG, PNG, WebP, GIF (first frame), BMP and TIFF to RGB uint8; cropped, then resized, when decoded.

Everything becomes 8-bit RGB in one defined way: EXIF rotation is applied, transparency is flattened on white, 16-bit
grey is scaled by 1/257, CMYK and palettes are converted by Pillow.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import nn

from xmodal_dist.batch import Arrays, Tensors
from xmodal_dist.encoders import EncoderSettings, build
from xmodal_dist.encoders.pixels import IMAGE_ENCODERS
from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities import pixels as px
from xmodal_dist.modalities.augment import ON_DEVICE, AugmentSettings, Box, augment, crop_box, luma, resize
from xmodal_dist.modalities.base import (
    Decoded,
    FieldSettings,
    Fitted,
    Modality,
    decode_each,
    media_share,
    replace_each,
)
from xmodal_dist.randomness import uniform

__all__ = ["MODALITY", "ImageModality", "ImageSettings"]

_STREAM_CROP = 101
_MIN_FITTED_SIZE_PX = 28
_MAX_FITTED_SIZE_PX = 224
_MAX_STATISTICS_IMAGES = 512
_RENDER_SIDE_PX = 160
_REDUCTIONS = (8, 4, 2)
_MEASURED_SIDE_PX = 6
_ANY_WIDTH = 8
# Pixels beyond this many times what the model sees are left encoded: a crop of them costs more to read than to decode.
_MAX_RAW_RATIO = 8


class ImageSettings(EncoderSettings, AugmentSettings, FieldSettings):
    """Settings of an image field."""

    architectures = IMAGE_ENCODERS

    kind: Literal["image"] = "image"
    encoder: str = "cnn"
    size_px: int | None = Field(None, ge=8, le=1024)
    """Height and width the model sees; null takes that of the network's published weights, else the sample's median
    short side, within 28 to 224."""
    decode: Literal["exact", "fast"] = "exact"
    """exact: pixels within 1 level of Pillow's (2 in about one value of 10,000). fast: JPEGs with approximate
    arithmetic, and at 1/2, 1/4 or 1/8 of their size where the smallest crop then still has ``size_px`` to a side."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """Encoded files above this are rejected."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Images of more pixels are rejected before they are decoded."""


class ImageModality(Modality[ImageSettings]):
    """Encoded images; array and tensor ``pixels``, with ``keys`` in training."""

    kind = "image"
    settings = ImageSettings
    suffixes = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
    device_settings = ON_DEVICE
    is_media = True

    def infer(self, name: str, sample: pa.Array) -> float:
        """Share of values with an image's first bytes or file name ending."""
        return media_share(sample, self.suffixes, lambda payload: px.sniff(payload) is not None)

    def check(self, values: Sequence[Any]) -> None:
        """Decode the image whole, under the default limits."""
        if values[0] is not None:
            px.decode(values[0], _limits(ImageSettings()))

    def fit(self, settings: ImageSettings, table: pa.Table) -> Fitted:
        """``size_px`` from the sizes in the files' headers; ``mean`` and ``std`` of each channel, in [0, 1].

        What a pretrained network was trained with takes their place; ``size_px`` only where the settings name none.

        Raises:
            UsageError: the network does not take images of this size.
        """
        prepared = settings.prepare()
        column = table.column(0).combine_chunks()
        short_sides: list[int] = []

        def measure(_: int, payload: memoryview) -> None:
            short_sides.append(min(px.measure(payload, _limits(settings))))

        decode_each(column, measure)
        size = settings.size_px or prepared.values.get("size_px")
        if size is None:
            median = float(np.median(short_sides)) if short_sides else _MIN_FITTED_SIZE_PX
            size = int(np.clip(round(median / 4) * 4, _MIN_FITTED_SIZE_PX, _MAX_FITTED_SIZE_PX))
        step = max(1, -(-len(column) // _MAX_STATISTICS_IMAGES))
        part = column.take(pa.array(range(0, len(column), step), pa.int64()))
        decoded = self.decode(settings, Fitted({"size_px": size}), [part], None)
        pixels = decoded.arrays["pixels"][decoded.present].reshape(-1, 3).astype(np.float32) / 255
        mean = pixels.mean(axis=0) if len(pixels) else np.full(3, 0.5)
        std = np.maximum(pixels.std(axis=0), 0.05) if len(pixels) else np.full(3, 0.25)
        values = {"mean": [float(v) for v in mean], "std": [float(v) for v in std]}
        fitted = Fitted({**values, **prepared.values, "size_px": size}, dict(prepared.files))
        with torch.device("meta"):  # Whether the network takes this size, without a weight being made.
            self.encoder(settings, fitted, _ANY_WIDTH)
        return fitted

    def decode(
        self,
        settings: ImageSettings,
        fitted: Fitted,
        columns: Sequence[pa.Array],
        keys: NDArray[np.uint64] | None,
    ) -> Decoded:
        """``pixels`` [n, size, size, 3] uint8; the centre square without keys, a random crop with them."""
        size: int = fitted.values["size_px"]
        pixels = np.zeros((len(columns[0]), size, size, 3), dtype=np.uint8)
        numbers = None if keys is None else uniform(keys, _STREAM_CROP, 4).tolist()
        fallbacks: Counter[str] = Counter()

        def decode_one(row: int, payload: memoryview) -> None:
            picture = _unpacked(payload, size, settings) or _decode(payload, size, settings)
            if picture.fallback is not None:
                fallbacks[picture.fallback] += 1
            draws = None if numbers is None else numbers[row]
            box = crop_box(picture.height, picture.width, draws, settings)
            resize(picture.pixels, _reduced(box, picture), pixels[row])

        present, errors = decode_each(columns[0], decode_one)
        return Decoded({"pixels": pixels}, present, errors, dict(fallbacks))

    def unpack(self, settings: ImageSettings, fitted: Fitted, columns: Sequence[pa.Array]) -> list[pa.Array]:
        """Raw pixels, whole, of images that are not much larger than what the model sees; others stay encoded."""
        size: int = fitted.values["size_px"]
        limits = _limits(settings)

        def replace(payload: memoryview) -> tuple[bytes, memoryview] | None:
            if _unpacked(payload, size, settings) is not None:
                return None
            height, width = px.measure(payload, limits)
            reduces = settings.decode == "fast" and px.sniff(payload) == "JPEG"
            factor = _reduction(min(height, width), size, settings) if reduces else 1
            if height * width > _MAX_RAW_RATIO * (size * factor) ** 2:
                return None
            return px.to_raw(_decode(payload, size, settings))

        return [replace_each(columns[0], replace)]

    def augments(self, settings: ImageSettings) -> bool:
        """Whether anything is cropped, moved or coloured at random."""
        return settings.augments

    def measures(
        self, settings: ImageSettings, fitted: Fitted, arrays: Arrays
    ) -> dict[str, NDArray[np.float32]]:
        """``brightness`` and ``contrast``: mean and deviation of the luma (ITU-R BT.601), 0 to 255.

        Of a grid of pixels, at least 6 to a side: all of them would cost as much as decoding some.
        """
        pixels = arrays["pixels"].view(np.uint8)
        step = max(1, pixels.shape[1] // _MEASURED_SIDE_PX)
        light = luma(pixels[:, step // 2 :: step, step // 2 :: step])
        mean = light.mean(axis=(1, 2))
        variance = np.einsum("nhw,nhw->n", light, light) / light.shape[1] ** 2 - mean**2
        return {"brightness": mean, "contrast": np.sqrt(np.maximum(variance, 0))}

    def transform(
        self, settings: ImageSettings, fitted: Fitted, tensors: Tensors, keys: Any | None
    ) -> Tensors:
        """``pixels`` uint8 [B, H, W, 3] to normalised float [B, 3, H, W] in channels-last memory; and ``keys``."""
        # NHWC in memory, seen as NCHW, is what PyTorch calls channels_last. In place where it can be: at 224 px each
        # pass over a batch costs as much as decoding a tenth of it.
        x = tensors["pixels"].permute(0, 3, 1, 2).to(torch.float32)
        if keys is not None:
            x = augment(x, keys, settings)
        mean = torch.tensor(fitted.values["mean"], device=x.device).view(1, 3, 1, 1)
        std = torch.tensor(fitted.values["std"], device=x.device).view(1, 3, 1, 1)
        x = x.mul_(1 / (255 * std)).sub_(mean / std)
        pixels = {"pixels": x.contiguous(memory_format=torch.channels_last)}
        return pixels if keys is None else {**pixels, "keys": keys}

    def encoder(self, settings: ImageSettings, fitted: Fitted, width: int) -> nn.Module:
        """As the settings name it; by default a small residual CNN."""
        return build(settings, fitted.values, fitted.files, width)

    def render(self, values: Sequence[Any]) -> str:
        """An ``<img>`` of at most 160 px."""
        if values[0] is None:
            return "<em>missing</em>"
        try:
            image = Image.fromarray(px.decode(values[0], _limits(ImageSettings())).pixels)
        except DecodeError as error:
            return f"<em>{html.escape(str(error))}</em>"
        image.thumbnail((_RENDER_SIDE_PX, _RENDER_SIDE_PX))
        data = base64.b64encode(_encode(image, "PNG")).decode("ascii")
        return (
            f'<img alt="" width="{image.width}" height="{image.height}" src="data:image/png;base64,{data}">'
        )

    def shrink(self, payload: bytes, max_side_px: int | None, sample_rate_hz: int | None) -> bytes:
        """Re-encode so that the short side is at most ``max_side_px``; photographs stay JPEG or WebP, others PNG."""
        limits = _limits(ImageSettings())
        short_px = min(px.measure(payload, limits))
        if max_side_px is None or short_px <= max_side_px:
            return payload
        image = Image.fromarray(px.decode(payload, limits).pixels)
        factor = max_side_px / short_px
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        name = px.sniff(payload)
        family = name if name in ("JPEG", "WEBP") else "PNG"
        return _encode(image.resize(size, Image.Resampling.LANCZOS), family)


def _limits(settings: ImageSettings) -> px.Limits:
    return px.Limits(settings.max_bytes, settings.max_pixels)


def _decode(payload: memoryview, size: int, settings: ImageSettings) -> px.Picture:
    fast = settings.decode == "fast"
    return px.decode(
        payload, _limits(settings), (lambda short_px: _reduction(short_px, size, settings)) if fast else None
    )


def _reduction(short_px: int, size: int, settings: ImageSettings) -> int:
    """How much smaller an image of this short side may be decoded so that no crop has to be enlarged for it."""
    smallest = short_px * math.sqrt(settings.crop_scale_min / settings.crop_ratio_max)
    # One pixel is lost to rounding at most.
    return next((factor for factor in _REDUCTIONS if smallest >= (size + 1) * factor), 1)


def _unpacked(payload: memoryview, size: int, settings: ImageSettings) -> px.Picture | None:
    """The picture of a value from ``unpack`` with these settings; None for any other value."""
    picture = px.from_raw(payload)
    if picture is None:
        return None
    full = (picture.height, picture.width)
    factor = _reduction(min(full), size, settings) if settings.decode == "fast" else 1
    fits = picture.pixels.shape[:2] in (full, tuple(-(-side // factor) for side in full))
    return picture if fits else None


def _reduced(box: Box, picture: px.Picture) -> Box:
    """A box in the original's pixels as one in the picture's."""
    height, width = picture.pixels.shape[:2]
    if (height, width) == (picture.height, picture.width):
        return box
    top, bottom = (round(y * height / picture.height) for y in (box[0], box[0] + box[2]))
    left, right = (round(x * width / picture.width) for x in (box[1], box[1] + box[3]))
    return top, left, bottom - top, right - left


def _encode(image: Image.Image, name: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **({} if name == "PNG" else {"quality": 90}))
    return buffer.getvalue()


MODALITY = ImageModality()
