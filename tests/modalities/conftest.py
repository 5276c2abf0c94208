"""Sample values of every kind, made here: good ones, and broken ones with the reason code each must get."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image


@dataclass(frozen=True)
class Sample:
    """Records of one kind.

    Attributes:
        types: type of each column.
        good: records as the values of each column.
        broken: records that must be rejected, and the reason code each must get.
    """

    types: tuple[pa.DataType, ...]
    good: tuple[tuple[Any, ...], ...]
    broken: tuple[tuple[tuple[Any, ...], str], ...]

    @property
    def missing(self) -> tuple[None, ...]:
        return (None,) * len(self.types)

    def columns(self, records: Any) -> list[pa.Array]:
        return [_column([r[i] for r in records], kind) for i, kind in enumerate(self.types)]

    def table(self, records: Any) -> pa.Table:
        return pa.table(self.columns(records), names=[f"c{i}" for i in range(len(self.types))])


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # a value of another type makes it a column of strings
        return pa.array([None if v is None else str(v) for v in values], pa.string())


def image_file(name: str, width: int = 40, height: int = 32, seed: int = 0, **options: Any) -> bytes:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / (5 + seed + c)) * np.cos(y / (6 + c)) for c in range(3)]
    pixels = (np.stack(waves, -1) + rng.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, name, **options)
    return buffer.getvalue()


def sound_file(
    name: str, seconds: float = 0.5, rate: int = 8000, seed: int = 0, subtype: str | None = None
) -> bytes:
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200 + 100 * seed) * at) + rng.normal(0, 0.02, len(at))
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=name, subtype=subtype)
    return buffer.getvalue()


def _image() -> Sample:
    good = [image_file(n, seed=i) for i, n in enumerate(("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"))]
    jpeg, png = image_file("JPEG"), image_file("PNG")
    broken = [
        (b"", "media_empty"),
        (b"<script>alert(1)</script>", "media_unrecognised"),
        (jpeg[: len(jpeg) // 2], "media_truncated"),
        (png[: len(png) // 2], "media_truncated"),
        (b"%PDF-1.7 ...", "media_unsupported_format"),
    ]
    return Sample((pa.binary(),), tuple((g,) for g in good), tuple(((b,), r) for b, r in broken))


def _audio() -> Sample:
    good = [sound_file(n, 0.3 + 0.1 * i, 8000, i) for i, n in enumerate(("WAV", "FLAC", "OGG", "MP3"))]
    wave, flac = sound_file("WAV"), sound_file("FLAC")
    broken = [
        (b"", "media_empty"),
        (b"<script>alert(1)</script>", "media_unrecognised"),
        (wave[: len(wave) // 2], "media_truncated"),
        (flac[: len(flac) // 2], "media_truncated"),
        (sound_file("WAV", 0.0), "audio_zero_length"),
    ]
    return Sample((pa.binary(),), tuple((g,) for g in good), tuple(((b,), r) for b, r in broken))


def _text() -> Sample:
    good = (
        ("a grinning face", b"face, happy, smile"),
        ("a crying face", b"face, sad, tear"),
        ("flag of Norway", None),
        (None, b"country, north"),
        ("\u00e9t\u00e9 <script> \U0001f600", b"   "),
    )
    return Sample((pa.string(), pa.binary()), good, ((("fine", b"\xff\xfe broken"), "text_not_utf8"),))


def _tabular() -> Sample:
    good = (
        (1.5, "red", True),
        (2.5, "blue", False),
        (-3.0, "red", None),
        (None, "blue", True),
        (1e3, None, True),
    )
    return Sample((pa.float64(), pa.string(), pa.bool_()), good, ((("many", "red", True), "column_type"),))


@pytest.fixture(scope="session")
def make_image() -> Callable[..., bytes]:
    """Encoded image: ``(format, width, height, seed, **save options)``."""
    return image_file


@pytest.fixture(scope="session")
def make_sound() -> Callable[..., bytes]:
    """Encoded sound: ``(format, seconds, rate, seed, subtype)``."""
    return sound_file


@pytest.fixture(scope="session")
def samples() -> dict[str, Sample]:
    """Sample records by kind; a new modality adds its own."""
    return {"image": _image(), "audio": _audio(), "text": _text(), "tabular": _tabular()}
