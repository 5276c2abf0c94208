"""Encoded images to RGB uint8 pixels: limits held before decoding, one defined conversion, a decoder for each format.

JPEG is decoded by libjpeg-turbo (simplejpeg), all else and what that refuses by Pillow.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from xmodal_dist.errors import DecodeError

__all__ = ["Limits", "Payload", "Picture", "decode", "from_raw", "measure", "sniff", "to_raw", "to_rgb"]

Payload = bytes | memoryview
"""An encoded image; a memoryview is of unsigned bytes."""

_Pixels = NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_BMP_HEADER_SIZES = frozenset(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))
_ORIENTATION_TAG = 0x0112
_ORIENTATION_SEGMENTS = (b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00")
_FALLBACK = "jpeg: simplejpeg -> Pillow"

# Height and width of the pixels, those of the original, 1 if the fallback took it; the first byte is of no format.
_RAW_HEADER = struct.Struct("<8s4IB7x")
_RAW_MAGIC = b"\x9cXMRGB\x00\x01"

# EXIF orientation -> the view of the pixels as they were meant to be seen.
_TURN: dict[int, Callable[[_Pixels], _Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}
_SIDEWAYS = (5, 6, 7, 8)


class Limits(NamedTuple):
    """What is refused before it is decoded: more encoded bytes, more pixels."""

    max_bytes: int
    max_pixels: int


class Picture(NamedTuple):
    """An image as it is meant to be seen.

    Attributes:
        pixels: [H, W, 3] RGB; smaller than the original where it was decoded at a reduced scale.
        height: of the original, in pixels.
        width: of the original, in pixels.
        fallback: what the fast decoder handed over to a slower one; None if it did not.
    """

    pixels: NDArray[np.uint8]
    height: int
    width: int
    fallback: str | None = None


def sniff(payload: Payload) -> str | None:
    """Pillow's name of the format that the first bytes announce; None if it is of no known one."""
    head = bytes(payload[:18])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[14:18] in _BMP_HEADER_SIZES:
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


def measure(payload: Payload, limits: Limits) -> tuple[int, int]:
    """Height and width as stored, from the header.

    Raises:
        DecodeError: not an image, damaged, or above a limit.
    """
    name = _recognise(payload, limits)
    header = _jpeg_header(payload, limits) if name == "JPEG" else None
    if header is None:
        image = _open(payload, name, limits)
        return image.height, image.width
    return header[:2]


def decode(payload: Payload, limits: Limits, reduction: Callable[[int], int] | None = None) -> Picture:
    """Decode an image.

    Args:
        payload: the encoded image.
        limits: what to refuse.
        reduction: None decodes as Pillow does. Otherwise JPEGs are decoded with libjpeg-turbo's fast approximations, at
            1 / ``reduction(short side in pixels)`` of their size: 1, 2, 4 or 8 (the ones it has vector code for).

    Raises:
        DecodeError: not an image, damaged, or above a limit.
    """
    name = _recognise(payload, limits)
    if name == "JPEG":
        picture = _decode_jpeg(payload, limits, reduction)
        if picture is not None:
            return picture
    image = _open(payload, name, limits)
    if image.mode == "F":
        raise DecodeError("media_unsupported_format", "floating-point pixels have no defined range")
    try:
        if image.format == "PNG":
            _check_png(payload)
        # Pixels first: reading Exif loads a PNG as well, and what fails there would not fail again.
        pixels = to_rgb(image)
        pixels = _TURN[_orientation(image)](pixels)
    except Exception as error:
        raise _broken(payload, str(image.format), error) from error
    height, width = pixels.shape[:2]
    return Picture(pixels, height, width, _FALLBACK if name == "JPEG" else None)


def to_raw(picture: Picture) -> tuple[bytes, memoryview]:
    """A decoded picture as the two parts of a value that :func:`from_raw` knows and :func:`decode` refuses."""
    height, width = picture.pixels.shape[:2]
    fields = (height, width, picture.height, picture.width, picture.fallback is not None)
    return _RAW_HEADER.pack(_RAW_MAGIC, *fields), np.ascontiguousarray(picture.pixels).data


def from_raw(payload: Payload) -> Picture | None:
    """The picture of a value that :func:`to_raw` made, as a view; None for any other value."""
    if payload[:8] != _RAW_MAGIC or len(payload) < _RAW_HEADER.size:
        return None
    _, height, width, full_height, full_width, fallback = _RAW_HEADER.unpack_from(payload)
    if not 0 < height * width * 3 == len(payload) - _RAW_HEADER.size:
        return None
    pixels = np.frombuffer(payload, np.uint8, offset=_RAW_HEADER.size).reshape(height, width, 3)
    return Picture(pixels, full_height, full_width, _FALLBACK if fallback else None)


def _recognise(payload: Payload, limits: Limits) -> str:
    if not payload:
        raise DecodeError("media_empty", "0 bytes")
    if len(payload) > limits.max_bytes:
        raise DecodeError("media_too_large_bytes", f"{len(payload)} bytes; max_bytes is {limits.max_bytes}")
    name = sniff(payload)
    if name is not None:
        return name
    head = bytes(payload[:8])
    if _is_other_media(head):
        raise DecodeError("media_unsupported_format", f"supported are {', '.join(_FORMATS)}")
    raise DecodeError("media_unrecognised", f"first bytes {head.hex()} are of no known image format")


def _is_other_media(head: bytes) -> bool:
    """Whether these are the first bytes of a format that shows pictures but is not read here."""
    # HEIC, AVIF and MP4; JPEG XL; JPEG 2000; PDF; Photoshop; icon; SVG.
    boxes = (b"ftyp", b"JXL ", b"jP  ")
    return head[4:8] in boxes or head.startswith(
        (b"\xff\x0a", b"%PDF", b"8BPS", b"\x00\x00\x01\x00", b"<svg")
    )


def _is_cut(payload: Payload, name: str) -> bool:
    """Whether the file ends before its format says it should."""
    tail = bytes(payload[-64:])
    if name == "JPEG":
        return b"\xff\xd9" not in tail
    if name == "PNG":
        return b"IEND" not in tail
    if name == "GIF":
        return not bytes(payload).rstrip(b"\x00").endswith(b";")
    if name == "WEBP":
        return len(payload) < int.from_bytes(payload[4:8], "little") + 8
    if name == "BMP":
        return len(payload) < int.from_bytes(payload[2:6], "little")
    first_directory = int.from_bytes(payload[4:8], "little" if payload[:1] == b"I" else "big")
    return len(payload) < first_directory + 2  # TIFF


def _hold(height: int, width: int, limits: Limits) -> None:
    if height * width > limits.max_pixels:
        message = f"{width} x {height} pixels; max_pixels is {limits.max_pixels}"
        raise DecodeError("media_too_large_decoded", message)


def _broken(payload: Payload, name: str, error: Exception) -> DecodeError:
    """Name a decoder's failure; its parsers raise almost any exception on damaged input."""
    cut = isinstance(error, UnidentifiedImageError) and len(payload) < 128
    if cut or "truncated" in str(error).lower() or _is_cut(payload, name):
        return DecodeError("media_truncated", f"{name} of {len(payload)} bytes ends early")
    # Pillow's messages may hold the address of an object, which no two runs share.
    return DecodeError("media_decode_error", f"{name}: {str(error).split(' <')[0]}")


# --- JPEG ------------------------------------------------------------------------------------------------------------


def _jpeg_header(payload: Payload, limits: Limits) -> tuple[int, int, str] | None:
    """Height, width and colour space; None where libjpeg-turbo sees damage: Pillow then says what is wrong."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(payload)
    except ValueError:
        return None
    _hold(height, width, limits)
    return height, width, colours


def _decode_jpeg(payload: Payload, limits: Limits, reduction: Callable[[int], int] | None) -> Picture | None:
    """The picture; None for damaged files and for colours that libjpeg-turbo does not turn to RGB."""
    header = _jpeg_header(payload, limits)
    if header is None or header[2] not in ("YCbCr", "Gray", "RGB"):
        return None
    height, width, _ = header
    factor = 1 if reduction is None else reduction(min(height, width))
    fast = reduction is not None
    try:
        pixels: _Pixels = simplejpeg.decode_jpeg(
            payload,
            fastdct=fast,
            fastupsample=fast,
            min_height=-(-height // factor),
            min_width=-(-width // factor),
            min_factor=factor,
        )
    except ValueError:  # The default is strict: also what libjpeg-turbo could pad or skip.
        return None
    orientation = 1
    if _may_be_turned(payload):
        with contextlib.suppress(Exception), Image.open(io.BytesIO(payload), formats=("JPEG",)) as image:
            orientation = _orientation(image)
    size = (width, height) if orientation in _SIDEWAYS else (height, width)
    return Picture(_TURN[orientation](pixels), *size)


def _may_be_turned(payload: Payload) -> bool:
    """Whether a segment before the pixels may hold an orientation (EXIF or XMP in APP1); ITU-T T.81, annex B."""
    at = 2
    while at + 4 <= len(payload) and payload[at] == 0xFF:
        marker = payload[at + 1]
        if marker == 0xDA:  # start of scan
            return False
        if marker == 0xFF or 0xD0 <= marker <= 0xD8:  # a fill byte; markers without a segment
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xE1 and bytes(payload[at + 4 : at + 40]).startswith(_ORIENTATION_SEGMENTS):
            return True
        at += 2 + int.from_bytes(payload[at + 2 : at + 4], "big")
    return False


# --- everything else -------------------------------------------------------------------------------------------------


def _open(payload: Payload, name: str, limits: Limits) -> Image.Image:
    """Read the header only, and hold it against the limits."""
    try:
        image = Image.open(io.BytesIO(payload), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError("media_too_large_decoded", str(error)) from error
    except Exception as error:
        raise _broken(payload, name, error) from error
    _hold(image.height, image.width, limits)
    return image


def _check_png(payload: Payload) -> None:
    """Hold every chunk against its checksum: Pillow decodes damaged pixels without a word (ISO/IEC 15948, 5.3)."""
    at = 8
    while (name := bytes(payload[at + 4 : at + 8])) != b"IEND":
        end = at + 8 + int.from_bytes(payload[at : at + 4], "big")
        if end > len(payload):
            raise ValueError("truncated")
        if zlib.crc32(payload[at + 4 : end]) != int.from_bytes(payload[end : end + 4], "big"):
            raise ValueError(f"bad checksum in chunk {name!r}")
        at = end + 4


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """[H, W, 3] of an image of Pillow's: 16-bit grey scaled to 8, transparency flattened on white."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """1 to 8 as in EXIF, from the header; 1 where there is none or it is broken: the pixels are fine without."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # Broken metadata of any shape.
        return 1
    return orientation if orientation in _TURN else 1
