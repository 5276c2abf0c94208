"""Video: MP4, MOV, WebM, Matroska, AVI and GIF to RGB uint8 frames spread over the whole clip; no sound.

A GIF is an image unless the field is declared to be of this kind; one of a single frame is a clip of one frame.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
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
from xmodal_dist.encoders.frames import VIDEO_ENCODERS
from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities import clips
from xmodal_dist.modalities.augment import ON_DEVICE, AugmentSettings, augment, crop_box, luma, resize
from xmodal_dist.modalities.base import (
    Decoded,
    FieldSettings,
    Fitted,
    Modality,
    decode_each,
    media_share,
    replace_each,
)
from xmodal_dist.modalities.containers import Limits, sniff
from xmodal_dist.randomness import uniform

__all__ = ["MODALITY", "VideoModality", "VideoSettings"]

_STREAM_CROP = 501
_STREAM_TIME = 502
_MIN_FITTED_SIZE_PX = 28
_MAX_FITTED_SIZE_PX = 112
_MAX_FITTED_FRAMES = 8
_MAX_STATISTICS_CLIPS = 64
_MEASURED_SIDE_PX = 6
_RENDER_FRAMES = 5
_RENDER_SIDE_PX = 112
# Pixels of a whole clip beyond this many times what the model sees are left encoded.
_MAX_RAW_RATIO = 8


class VideoSettings(EncoderSettings, AugmentSettings, FieldSettings):
    """Settings of a video field."""

    architectures = VIDEO_ENCODERS

    kind: Literal["video"] = "video"
    encoder: str = "cnn"
    size_px: int | None = Field(None, ge=8, le=1024)
    """Height and width the model sees; null takes that of the network's published weights, else the sample's median
    short side, within 28 to 112."""
    num_frames: int | None = Field(None, ge=1, le=256)
    """Frames the model sees of each clip; null takes the sample's longest clip, at most 8."""
    max_bytes: int = Field(256 * 2**20, ge=1)
    """Encoded files above this are rejected."""
    max_pixels: int = Field(10_000_000, ge=1)
    """Clips whose frames have more pixels are rejected before they are decoded."""
    max_frames: int = Field(36_000, ge=1)
    """Clips of more frames are rejected before they are decoded."""
    max_seconds: float = Field(1_200.0, gt=0)
    """Longer clips are rejected before they are decoded."""


class VideoModality(Modality[VideoSettings]):
    """Encoded clips; arrays ``frames``, ``length`` and ``duration_s``, tensors ``pixels`` and ``length``."""

    kind = "video"
    settings = VideoSettings
    suffixes = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"})
    declared_suffixes = frozenset({".gif"})
    device_settings = ON_DEVICE
    is_media = True

    def require(self) -> None:
        """PyAV."""
        clips.require_av()

    def infer(self, name: str, sample: pa.Array) -> float:
        """Share of values with a video's first bytes or file name ending; a GIF counts for nothing."""
        return media_share(sample, self.suffixes, lambda payload: sniff(payload) not in (None, "GIF"))

    def check(self, values: Sequence[Any]) -> None:
        """Decode the clip whole, under the default limits."""
        if values[0] is not None:
            clips.check(values[0], _limits(VideoSettings()))

    def fit(self, settings: VideoSettings, table: pa.Table) -> Fitted:
        """``size_px`` and ``num_frames`` from sizes and lengths; ``mean`` and ``std`` of each channel, in [0, 1].

        What a pretrained network was trained with takes their place; ``size_px`` only where the settings name none.
        """
        prepared = settings.prepare()
        column = table.column(0).combine_chunks()
        short_sides: list[int] = []
        counts: list[int] = []

        def measure(_: int, payload: memoryview) -> None:
            with clips.open_clip(payload, _limits(settings)) as clip:
                short_sides.append(min(clip.height, clip.width))
                counts.append(len(clip.times_s))

        decode_each(column, measure)
        size = settings.size_px or prepared.values.get("size_px")
        if size is None:
            median = float(np.median(short_sides)) if short_sides else _MIN_FITTED_SIZE_PX
            size = int(np.clip(round(median / 4) * 4, _MIN_FITTED_SIZE_PX, _MAX_FITTED_SIZE_PX))
        num_frames = settings.num_frames or min(_MAX_FITTED_FRAMES, max(counts, default=_MAX_FITTED_FRAMES))
        sizes = {"size_px": size, "num_frames": num_frames}
        step = max(1, -(-len(column) // _MAX_STATISTICS_CLIPS))
        part = column.take(pa.array(range(0, len(column), step), pa.int64()))
        arrays = self.decode(settings, Fitted(sizes), [part], None).arrays
        pixels = arrays["frames"][_shown(arrays)].reshape(-1, 3).astype(np.float32) / 255
        mean = pixels.mean(axis=0) if len(pixels) else np.full(3, 0.5)
        std = np.maximum(pixels.std(axis=0), 0.05) if len(pixels) else np.full(3, 0.25)
        values = {"mean": [float(v) for v in mean], "std": [float(v) for v in std]}
        return Fitted({**values, **prepared.values, **sizes}, dict(prepared.files))

    def decode(
        self,
        settings: VideoSettings,
        fitted: Fitted,
        columns: Sequence[pa.Array],
        keys: NDArray[np.uint64] | None,
    ) -> Decoded:
        """``frames`` [n, F, size, size, 3] uint8, ``length`` [n] int32 <= F, and ``duration_s`` [n] of the whole clip.

        F is ``num_frames``. The clip is cut into F segments of equal duration; of each comes the frame shown in its
        middle, or with keys at a random time in it (as in TSN, Wang et al. 2016). A clip of at most F frames gives
        them all, and black ones up to F, which ``length`` leaves out. All frames of a clip are cropped alike: to the
        centre square, with keys to a random box.
        """
        count, size = fitted.values["num_frames"], fitted.values["size_px"]
        frames = np.zeros((len(columns[0]), count, size, size, 3), dtype=np.uint8)
        length = np.zeros(len(columns[0]), dtype=np.int32)
        duration_s = np.zeros(len(columns[0]), dtype=np.float32)
        boxes = None if keys is None else uniform(keys, _STREAM_CROP, 4).tolist()
        times = None if keys is None else uniform(keys, _STREAM_TIME, count)

        def decode_one(row: int, payload: memoryview) -> None:
            with _opened(payload, settings) as clip:
                chosen = _choose(clip, count, None if times is None else times[row])
                draws = None if boxes is None else boxes[row]
                try:
                    _read(clip, chosen, draws, settings, frames[row])
                except DecodeError:
                    frames[row] = 0
                    raise
                length[row], duration_s[row] = len(chosen), clip.duration_s

        present, errors = decode_each(columns[0], decode_one)
        return Decoded({"frames": frames, "length": length, "duration_s": duration_s}, present, errors)

    def unpack(self, settings: VideoSettings, fitted: Fitted, columns: Sequence[pa.Array]) -> list[pa.Array]:
        """All frames, whole, of clips that are not much larger than what the model sees; others stay encoded."""
        seen = fitted.values["num_frames"] * fitted.values["size_px"] ** 2

        def replace(payload: memoryview) -> list[bytes | memoryview] | None:
            if clips.from_raw(payload) is not None:
                return None
            with clips.open_clip(payload, _limits(settings)) as clip:
                count = len(clip.times_s)
                if count * clip.height * clip.width > _MAX_RAW_RATIO * seen:
                    return None
                pictures = list(clip.read(range(count)))
                if len({picture.shape for picture in pictures}) > 1:
                    return None
                return clips.to_raw(clip, pictures)

        return [replace_each(columns[0], replace)]

    def measures(
        self, settings: VideoSettings, fitted: Fitted, arrays: Arrays
    ) -> dict[str, NDArray[np.float32]]:
        """``brightness``, 0 to 255; ``motion``: how much it changes from frame to frame; ``duration_s``.

        Brightness is the mean luma of a grid of pixels, at least 6 to a side; motion the mean absolute difference at
        its points between the frames that the model sees, NaN where that is one.
        """
        frames = arrays["frames"].view(np.uint8)
        step = max(1, frames.shape[2] // _MEASURED_SIDE_PX)
        light = luma(frames[:, :, step // 2 :: step, step // 2 :: step])
        shown = _shown(arrays)
        moved = np.abs(np.diff(light, axis=1)).mean(axis=(2, 3))
        pairs = shown[:, 1:]
        motion = (moved * pairs).sum(axis=1) / np.maximum(pairs.sum(axis=1), 1)
        brightness = (light.mean(axis=(2, 3)) * shown).sum(axis=1) / np.maximum(shown.sum(axis=1), 1)
        return {
            "brightness": brightness.astype(np.float32),
            "motion": np.where(pairs.any(axis=1), motion, np.nan).astype(np.float32),
            "duration_s": arrays["duration_s"].astype(np.float32),
        }

    def transform(
        self, settings: VideoSettings, fitted: Fitted, tensors: Tensors, keys: Any | None
    ) -> Tensors:
        """``frames`` to normalised float ``pixels`` [B, F, 3, H, W], all of a record augmented alike; and ``keys``."""
        rows, count = tensors["frames"].shape[:2]
        x = tensors["frames"].flatten(0, 1).permute(0, 3, 1, 2).to(torch.float32)
        if keys is not None:
            x = augment(x, keys.repeat_interleave(count), settings)
        mean = torch.tensor(fitted.values["mean"], device=x.device).view(1, 3, 1, 1)
        std = torch.tensor(fitted.values["std"], device=x.device).view(1, 3, 1, 1)
        x = x.mul_(1 / (255 * std)).sub_(mean / std).contiguous(memory_format=torch.channels_last)
        found = {"pixels": x.view(rows, count, *x.shape[1:]), "length": tensors["length"]}
        return found if keys is None else {**found, "keys": keys}

    def encoder(self, settings: VideoSettings, fitted: Fitted, width: int) -> nn.Module:
        """As the settings name it: an image encoder on each frame, pooled over time."""
        return build(settings, fitted.values, fitted.files, width)

    def render(self, values: Sequence[Any]) -> str:
        """Up to 5 frames from the first to the last, side by side."""
        if values[0] is None:
            return "<em>missing</em>"
        try:
            with clips.open_clip(values[0], _limits(VideoSettings())) as clip:
                count = len(clip.times_s)
                chosen = np.unique(np.linspace(0, count - 1, min(count, _RENDER_FRAMES)).astype(int))
                pictures = [_thumbnail(picture) for picture in clip.read(chosen.tolist())]
        except DecodeError as error:
            return f"<em>{html.escape(str(error))}</em>"
        strip = Image.new("RGB", (sum(p.width + 2 for p in pictures) - 2, max(p.height for p in pictures)))
        left = 0
        for picture in pictures:
            strip.paste(picture, (left, 0))
            left += picture.width + 2
        buffer = io.BytesIO()
        strip.save(buffer, "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        about = f"{len(chosen)} of {count} frames, {clip.duration_s:.1f} s"
        size = f'width="{strip.width}" height="{strip.height}"'
        return f'<img alt="{about}" title="{about}" {size} src="data:image/jpeg;base64,{data}">'


def _limits(settings: VideoSettings) -> Limits:
    return Limits(settings.max_bytes, settings.max_pixels, settings.max_frames, settings.max_seconds)


def _opened(payload: memoryview, settings: VideoSettings) -> contextlib.AbstractContextManager[clips.Clip]:
    """The clip of a value, encoded or from ``unpack``."""
    raw = clips.from_raw(payload)
    return clips.open_clip(payload, _limits(settings)) if raw is None else contextlib.nullcontext(raw)


def _choose(clip: clips.Clip, count: int, draws: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """At most ``count`` ascending indices of frames, one a segment of the clip; ``draws`` [count] say where in it."""
    available = len(clip.times_s)
    if available <= count:
        return np.arange(available)
    at_s = (np.arange(count) + (0.5 if draws is None else draws)) * (clip.duration_s / count)
    return np.clip(np.searchsorted(clip.times_s, at_s, side="right") - 1, 0, available - 1)


def _read(
    clip: clips.Clip,
    chosen: NDArray[np.int64],
    draws: Sequence[float] | None,
    settings: VideoSettings,
    out: NDArray[np.uint8],
) -> None:
    """The chosen frames, decoded one by one, cropped by ``draws`` and resized, into ``out`` [F, size, size, 3]."""
    distinct = np.unique(chosen).tolist()
    for index, picture in zip(distinct, clip.read(distinct), strict=True):
        places = np.flatnonzero(chosen == index)
        height, width = picture.shape[:2]
        resize(picture, crop_box(height, width, draws, settings), out[places[0]])
        out[places[1:]] = out[places[0]]


def _shown(arrays: Arrays) -> NDArray[np.bool_]:
    """[n, F] which frames are really there."""
    places = np.arange(arrays["frames"].shape[1])
    return np.less(places, arrays["length"][:, None])


def _thumbnail(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_RENDER_SIDE_PX, _RENDER_SIDE_PX))
    return image


MODALITY = VideoModality()
