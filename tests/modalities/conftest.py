"""Sample values of every kind, made here: good ones, and broken ones with the reason code each must get."""

from __future__ import annotations

import importlib.util
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


VIDEO_CODECS = {
    "mp4": ("mpeg4", "yuv420p"),
    "mov": ("mjpeg", "yuvj420p"),
    "webm": ("libvpx", "yuv420p"),
    "matroska": ("libvpx-vp9", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "gif": ("gif", "rgb8"),
}


def video_file(
    name: str,
    count: int = 12,
    width: int = 40,
    height: int = 32,
    seed: int = 0,
    *,
    codec: str | None = None,
    rate_hz: int = 10,
    gop: int = 4,
    b_frames: int = 0,
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """A bright bar that moves to the right over a background that grows lighter; ``times`` in 1 / rate_hz."""
    import av

    usual_codec, pixel_format = VIDEO_CODECS[name]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=name) as container:
        stream: Any = container.add_stream(codec or usual_codec, rate=rate_hz, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.gop_size, stream.max_b_frames = gop, b_frames
        for index in range(count):
            pixels = np.full((height, width, 3), 20 + 7 * index + 11 * seed % 50, np.uint8)
            pixels[:, (3 * index + seed) % (width - 8) :][:, :8] = 230
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts = index if times is None else times[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _video() -> Sample:
    good = [video_file(n, 9 + i, seed=i) for i, n in enumerate(VIDEO_CODECS)]
    mp4, gif, webm = video_file("mp4"), video_file("gif"), video_file("webm")
    broken = [
        (b"", "media_empty"),
        (b"<script>alert(1)</script>", "media_unrecognised"),
        (mp4[: len(mp4) // 2], "media_truncated"),
        (gif[: len(gif) // 2], "media_truncated"),
        (webm[: len(webm) // 2], "media_truncated"),
        (b"FLV\x01\x05" + bytes(40), "media_unsupported_format"),
    ]
    return Sample((pa.binary(),), tuple((g,) for g in good), tuple(((b,), r) for b, r in broken))


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
def make_video() -> Callable[..., bytes]:
    """Encoded clip: see :func:`video_file`."""
    pytest.importorskip("av", reason="PyAV makes the clips: pip install 'xmodal-dist[video]'")
    return video_file


@pytest.fixture(scope="session")
def samples() -> dict[str, Sample]:
    """Sample records by kind; a new modality adds its own. No video without PyAV."""
    found = {"image": _image(), "audio": _audio(), "text": _text(), "tabular": _tabular()}
    return {**found, "video": _video()} if importlib.util.find_spec("av") else found
