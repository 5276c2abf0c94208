"""Images: JPEG, PNG, WebP, GIF (first frame), BMP and TIFF to RGB uint8; cropped and resized when decoded.

Everything becomes 8-bit RGB in one defined way: EXIF rotation is applied, transparency is flattened on white, 16-bit
grey is scaled by 1/257, CMYK and palettes are converted by Pillow.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from xmodal_dist.batch import Tensors
from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities.base import Decoded, FieldSettings, Fitted, Modality, decode_each, media_share
from xmodal_dist.modalities.layers import ConvEncoder
from xmodal_dist.modalities.randomness import uniform, uniform_like

try:  # Optional: the same libjpeg-turbo, the same pixels, in two thirds of Pillow's time.
    import simplejpeg
except ImportError:  # pragma: no cover
    simplejpeg = None

__all__ = ["MODALITY", "ImageModality", "ImageSettings"]

_Pixels = NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_STREAM_CROP = 101
_STREAM_AFFINE = 102
_STREAM_COLOUR = 103
_STREAM_FLIP = 104
_ORIENTATION_TAG = 0x0112
_MIN_FITTED_SIZE_PX = 28
_MAX_FITTED_SIZE_PX = 224
_MAX_STATISTICS_IMAGES = 512
_RENDER_SIDE_PX = 160

_BMP_HEADER_SIZES = frozenset(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))

# EXIF orientation -> the view of the pixels as they were meant to be seen.
_TURN: dict[int, Callable[[_Pixels], _Pixels]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


class ImageSettings(FieldSettings):
    """Settings of an image field."""

    kind: Literal["image"] = "image"
    size_px: int | None = Field(None, ge=8, le=1024)
    """Height and width the model sees; null takes the sample's median short side, within 28 to 224."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """Encoded files above this are rejected."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Images of more pixels are rejected before they are decoded."""
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


class ImageModality(Modality[ImageSettings]):
    """Encoded images; array and tensor ``pixels``."""

    kind = "image"
    settings = ImageSettings
    suffixes = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
    is_media = True

    def infer(self, name: str, sample: pa.Array) -> float:
        """Share of values with an image's first bytes or file name ending."""
        return media_share(sample, self.suffixes, lambda payload: _sniff(payload) is not None)

    def check(self, values: Sequence[Any]) -> None:
        """Decode the image whole, under the default limits."""
        if values[0] is not None:
            _decode(values[0], ImageSettings())

    def fit(self, settings: ImageSettings, table: pa.Table) -> Fitted:
        """``size_px`` from the sizes in the files' headers; ``mean`` and ``std`` of each channel, in [0, 1]."""
        column = table.column(0).combine_chunks()
        short_sides: list[int] = []

        def measure(_: int, payload: bytes) -> None:
            short_sides.append(min(_open(payload, settings).size))

        decode_each(column, measure)
        size = settings.size_px
        if size is None:
            median = float(np.median(short_sides)) if short_sides else _MIN_FITTED_SIZE_PX
            size = int(np.clip(round(median / 4) * 4, _MIN_FITTED_SIZE_PX, _MAX_FITTED_SIZE_PX))
        step = max(1, -(-len(column) // _MAX_STATISTICS_IMAGES))
        part = column.take(pa.array(range(0, len(column), step), pa.int64()))
        decoded = self.decode(settings, Fitted({"size_px": size}), [part], None)
        pixels = decoded.arrays["pixels"][decoded.present].reshape(-1, 3).astype(np.float32) / 255
        mean = pixels.mean(axis=0) if len(pixels) else np.full(3, 0.5)
        std = np.maximum(pixels.std(axis=0), 0.05) if len(pixels) else np.full(3, 0.25)
        return Fitted({"size_px": size, "mean": [float(v) for v in mean], "std": [float(v) for v in std]})

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
        numbers = None if keys is None else uniform(keys, _STREAM_CROP, 4)

        def decode_one(row: int, payload: bytes) -> None:
            image = _decode(payload, settings)
            height, width = image.shape[:2]
            box = _box(height, width, None if numbers is None else numbers[row], settings)
            pixels[row] = _resize(image, box, size)

        present, errors = decode_each(columns[0], decode_one)
        return Decoded({"pixels": pixels}, present, errors)

    def transform(
        self, settings: ImageSettings, fitted: Fitted, tensors: Tensors, keys: Any | None
    ) -> Tensors:
        """``pixels`` uint8 [B, H, W, 3] to normalised float [B, 3, H, W] in channels-last memory."""
        # NHWC in memory, seen as NCHW, is what PyTorch calls channels_last. In place where it can be: at 224 px each
        # pass over a batch costs as much as decoding a tenth of it.
        x = tensors["pixels"].permute(0, 3, 1, 2).to(torch.float32)
        if keys is not None:
            x = _jitter_colour(_move(x, keys, settings), keys, settings.colour_jitter)
        mean = torch.tensor(fitted.values["mean"], device=x.device).view(1, 3, 1, 1)
        std = torch.tensor(fitted.values["std"], device=x.device).view(1, 3, 1, 1)
        x = x.mul_(1 / (255 * std)).sub_(mean / std)
        return {"pixels": x.contiguous(memory_format=torch.channels_last)}

    def encoder(self, settings: ImageSettings, fitted: Fitted, width: int) -> nn.Module:
        """A small residual CNN."""
        return _Encoder(width)

    def render(self, values: Sequence[Any]) -> str:
        """An ``<img>`` of at most 160 px."""
        if values[0] is None:
            return "<em>missing</em>"
        try:
            image = Image.fromarray(_decode(values[0], ImageSettings()))
        except DecodeError as error:
            return f"<em>{html.escape(str(error))}</em>"
        image.thumbnail((_RENDER_SIDE_PX, _RENDER_SIDE_PX))
        data = base64.b64encode(_encode(image, "PNG")).decode("ascii")
        return (
            f'<img alt="" width="{image.width}" height="{image.height}" src="data:image/png;base64,{data}">'
        )

    def shrink(self, payload: bytes, max_side_px: int | None, sample_rate_hz: int | None) -> bytes:
        """Re-encode so that the short side is at most ``max_side_px``; photographs stay JPEG or WebP, others PNG."""
        settings = ImageSettings()
        source = _open(payload, settings)
        if max_side_px is None or min(source.size) <= max_side_px:
            return payload
        image = Image.fromarray(_decode(payload, settings))
        factor = max_side_px / min(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        family = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WEBP"}.get(str(source.format), "PNG")
        return _encode(image.resize(size, Image.Resampling.LANCZOS), family)


class _Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = ConvEncoder(3, width)

    def forward(self, tensors: Tensors) -> torch.Tensor:
        features: torch.Tensor = self.net(tensors["pixels"])
        return features


def _sniff(payload: bytes) -> str | None:
    """Pillow's name of the format that the first bytes announce."""
    head = payload[:12]
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and payload[14:18] in _BMP_HEADER_SIZES:
        return "BMP"
    starts = {
        b"\xff\xd8\xff": "JPEG",
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"GIF87a": "GIF",
        b"GIF89a": "GIF",
        b"II*\x00": "TIFF",
        b"MM\x00*": "TIFF",
    }
    return next((name for start, name in starts.items() if head.startswith(start)), None)


def _is_other_media(payload: bytes) -> bool:
    """Whether these are the first bytes of a format that shows pictures but is not read here."""
    # HEIC, AVIF and MP4; JPEG XL; JPEG 2000; PDF; Photoshop; icon; SVG.
    boxes = (b"ftyp", b"JXL ", b"jP  ")
    return payload[4:8] in boxes or payload.startswith(
        (b"\xff\x0a", b"%PDF", b"8BPS", b"\x00\x00\x01\x00", b"<svg")
    )


def _is_cut(payload: bytes, name: str) -> bool:
    """Whether the file ends before its format says it should."""
    if name == "JPEG":
        return b"\xff\xd9" not in payload[-64:]
    if name == "PNG":
        return b"IEND" not in payload[-64:]
    if name == "GIF":
        return not payload.rstrip(b"\x00").endswith(b";")
    if name == "WEBP":
        return len(payload) < int.from_bytes(payload[4:8], "little") + 8
    if name == "BMP":
        return len(payload) < int.from_bytes(payload[2:6], "little")
    first_directory = int.from_bytes(payload[4:8], "little" if payload[:1] == b"I" else "big")
    return len(payload) < first_directory + 2  # TIFF


def _open(payload: bytes, settings: ImageSettings) -> Image.Image:
    """Read the header only, and hold it against the limits."""
    if not payload:
        raise DecodeError("media_empty", "0 bytes")
    if len(payload) > settings.max_bytes:
        raise DecodeError("media_too_large_bytes", f"{len(payload)} bytes; max_bytes is {settings.max_bytes}")
    name = _sniff(payload)
    if name is None:
        if _is_other_media(payload):
            raise DecodeError("media_unsupported_format", f"supported are {', '.join(_FORMATS)}")
        raise DecodeError(
            "media_unrecognised", f"first bytes {payload[:8].hex()} are of no known image format"
        )
    try:
        image = Image.open(io.BytesIO(payload), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError("media_too_large_decoded", str(error)) from error
    except Exception as error:
        raise _broken(payload, name, error) from error
    if image.width * image.height > settings.max_pixels:
        message = f"{image.width} x {image.height} pixels; max_pixels is {settings.max_pixels}"
        raise DecodeError("media_too_large_decoded", message)
    return image


def _broken(payload: bytes, name: str, error: Exception) -> DecodeError:
    """Name a decoder's failure; its parsers raise almost any exception on damaged input."""
    cut = isinstance(error, UnidentifiedImageError) and len(payload) < 128
    if cut or "truncated" in str(error).lower() or _is_cut(payload, name):
        return DecodeError("media_truncated", f"{name} of {len(payload)} bytes ends early")
    # Pillow's messages may hold the address of an object, which no two runs share.
    return DecodeError("media_decode_error", f"{name}: {str(error).split(' <')[0]}")


def _decode(payload: bytes, settings: ImageSettings) -> _Pixels:
    """RGB [H, W, 3]."""
    image = _open(payload, settings)
    if image.mode == "F":
        raise DecodeError("media_unsupported_format", "floating-point pixels have no defined range")
    try:
        pixels = _jpeg_pixels(payload) if image.format == "JPEG" and image.mode == "RGB" else None
        if image.format == "PNG":
            # Decoding alone does not look at checksums, and shows damaged data without a word.
            Image.open(io.BytesIO(payload)).verify()
        if pixels is None:
            pixels = _rgb(image)
    except Exception as error:
        raise _broken(payload, str(image.format), error) from error
    turn = _TURN.get(_orientation(image))
    return pixels if turn is None else turn(pixels)


def _jpeg_pixels(payload: bytes) -> _Pixels | None:
    """_Pixels of an RGB JPEG; None where simplejpeg is not there or sees damage: Pillow then says what is wrong."""
    if simplejpeg is None:
        return None
    try:
        pixels: _Pixels = simplejpeg.decode_jpeg(payload, fastdct=False, fastupsample=False)
    except ValueError:
        return None
    return pixels


def _rgb(image: Image.Image) -> _Pixels:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # Broken metadata of any shape does not make the pixels unusable.
        return 1


_Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


def _box(height: int, width: int, numbers: NDArray[np.float64] | None, settings: ImageSettings) -> _Box:
    """The centre square; with 4 uniform ``numbers`` a random box (as in Szegedy et al. 2015) inside the image."""
    side = min(height, width)
    if numbers is None:
        return (height - side) // 2, (width - side) // 2, side, side
    area = side**2 * (settings.crop_scale_min + (1 - settings.crop_scale_min) * numbers[0])
    ratio = settings.crop_ratio_max ** (2 * numbers[1] - 1)
    box_height = min(height, max(1, round(math.sqrt(area / ratio))))
    box_width = min(width, max(1, round(math.sqrt(area * ratio))))
    top = int(numbers[2] * (height - box_height + 1))
    left = int(numbers[3] * (width - box_width + 1))
    return top, left, box_height, box_width


def _resize(image: _Pixels, box: _Box, size: int) -> _Pixels:
    """The box at ``size`` x ``size``, antialiased bilinear."""
    top, left, height, width = box
    crop = np.ascontiguousarray(image[top : top + height, left : left + width])
    if (height, width) == (size, size):
        return crop
    # PyTorch's uint8 channels-last kernel is within 1 level of Pillow's resize and three times as fast.
    planes = torch.from_numpy(crop).permute(2, 0, 1).unsqueeze(0)
    resized = F.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
    pixels: _Pixels = resized[0].permute(1, 2, 0).numpy()
    return pixels


def _encode(image: Image.Image, name: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **({} if name == "PNG" else {"quality": 90}))
    return buffer.getvalue()


def _move(x: torch.Tensor, keys: torch.Tensor, settings: ImageSettings) -> torch.Tensor:
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


MODALITY = ImageModality()
