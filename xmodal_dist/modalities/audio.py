"""Audio: WAV, FLAC, OGG and MP3 to mono int16 of one rate and length; log-mel spectrograms on the device."""

from __future__ import annotations

import base64
import functools
import html
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from xmodal_dist.batch import Arrays, Tensors
from xmodal_dist.encoders import EncoderSettings, build
from xmodal_dist.encoders.pixels import SPECTROGRAM_ENCODERS
from xmodal_dist.encoders.sound import SOUND_ENCODERS
from xmodal_dist.encoders.waves import WAVE_ENCODERS
from xmodal_dist.errors import DecodeError, UsageError
from xmodal_dist.modalities.base import (
    Decoded,
    FieldSettings,
    Fitted,
    Modality,
    decode_each,
    media_share,
    replace_each,
)
from xmodal_dist.modalities.samples import (
    FULL_SCALE,
    MIN_RATE_HZ,
    Limits,
    Recording,
    encode,
    from_raw,
    open_recording,
    resample,
    sniff,
    to_int16,
    to_raw,
)
from xmodal_dist.randomness import uniform, uniform_like

__all__ = ["MODALITY", "AudioModality", "AudioSettings", "mel_filters"]

_STREAM_CROP = 201
_STREAM_SHIFT = 202
_STREAM_GAIN = 203
_STREAM_MASK = 204
_MAX_FITTED_RATE_HZ = 16_000
_LOG_RANGE = 8.0
_GAIN_BANDS = 4
_RENDER_MAX_SECONDS = 10.0
_MEASURED_SAMPLES = 256
_SILENCE_DB = -100.0


class AudioSettings(EncoderSettings, FieldSettings):
    """Settings of an audio field."""

    architectures = (*SPECTROGRAM_ENCODERS, *WAVE_ENCODERS, *SOUND_ENCODERS)

    kind: Literal["audio"] = "audio"
    encoder: str = "cnn"
    sample_rate_hz: int | None = Field(None, ge=MIN_RATE_HZ, le=48_000)
    """Rate everything is resampled to; null takes a pretrained network's, else the sample's median rate, at most
    16,000."""
    max_seconds: float = Field(10.0, gt=0, le=60)
    """The model sees the sample's 99.5th percentile of durations, at most this; longer recordings are cropped."""
    max_bytes: int = Field(64 * 2**20, ge=1)
    """Encoded files above this are rejected."""
    max_samples: int = Field(200_000_000, ge=1)
    """Recordings of more samples (all channels together) are rejected before they are decoded."""
    num_mels: int = Field(64, ge=8, le=256)
    """Mel bands."""
    window_s: float = Field(0.025, gt=0, le=0.2)
    """Length of the analysis window."""
    hop_s: float = Field(0.010, gt=0, le=0.2)
    """Distance of frames."""
    gain_db: float = Field(6.0, ge=0, le=30)
    """Random gain of each frequency region, up to this to either side; an even gain is normalised away. Spectrograms
    only, as ``mask_mels``."""
    time_shift: float = Field(0.1, ge=0, le=0.5)
    """Random shift up to this share of the length, to either side."""
    mask_time: float = Field(0.1, ge=0, le=0.5)
    """SpecAugment: a random run of up to this share of the frames is masked, of raw sound that of the samples."""
    mask_mels: float = Field(0.15, ge=0, le=0.5)
    """SpecAugment: a random run of up to this share of the mel bands is masked."""


class AudioModality(Modality[AudioSettings]):
    """Encoded sound; arrays ``samples`` and ``length``; tensor ``spectrogram``, or ``wave`` and ``length``."""

    kind = "audio"
    settings = AudioSettings
    suffixes = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
    device_settings = frozenset({"gain_db", "time_shift", "mask_time", "mask_mels"})
    is_media = True

    def infer(self, name: str, sample: pa.Array) -> float:
        """Share of values with a sound file's first bytes or file name ending."""
        return media_share(sample, self.suffixes, lambda payload: sniff(payload) is not None)

    def check(self, values: Sequence[Any]) -> None:
        """Decode the recording whole, under the default limits."""
        if values[0] is not None:
            with open_recording(values[0], _limits(AudioSettings())) as recording:
                recording.mono(0, recording.num_frames)

    def fit(self, settings: AudioSettings, table: pa.Table) -> Fitted:
        """``sample_rate_hz`` and ``num_samples`` from the rates and durations in the files' headers.

        Raises:
            UsageError: the settings name another rate than the one that a pretrained network hears at.
        """
        prepared = settings.prepare()
        rates_hz: list[int] = []
        durations_s: list[float] = []

        def measure(_: int, payload: memoryview) -> None:
            with open_recording(payload, _limits(settings)) as recording:
                rates_hz.append(recording.rate_hz)
                durations_s.append(recording.num_frames / recording.rate_hz)

        decode_each(table.column(0).combine_chunks(), measure)
        rate_hz = prepared.values.get("sample_rate_hz", settings.sample_rate_hz)
        if settings.sample_rate_hz not in (None, rate_hz):
            raise UsageError(
                f"sample_rate_hz is {settings.sample_rate_hz}, but {settings.encoder} hears at {rate_hz}: leave it out"
            )
        if rate_hz is None:
            rate_hz = min(_MAX_FITTED_RATE_HZ, int(np.median(rates_hz)) if rates_hz else _MAX_FITTED_RATE_HZ)
        longest_s = float(np.percentile(durations_s, 99.5)) if durations_s else settings.max_seconds
        num_samples = math.ceil(min(settings.max_seconds, longest_s) * rate_hz)
        # At least one window, so that there is a frame that is not all padding.
        num_samples = max(num_samples, round(settings.window_s * rate_hz))
        values = {**prepared.values, "sample_rate_hz": rate_hz, "num_samples": num_samples}
        return Fitted(values, dict(prepared.files))

    def decode(
        self,
        settings: AudioSettings,
        fitted: Fitted,
        columns: Sequence[pa.Array],
        keys: NDArray[np.uint64] | None,
    ) -> Decoded:
        """``samples`` [n, num_samples] int16, zero-padded at the end, and ``length`` [n] int32 in samples.

        Longer recordings are cropped: the middle without keys, a random place with them. Recordings that exceed full
        scale (floating-point files) are scaled down to it.
        """
        samples = np.zeros((len(columns[0]), fitted.values["num_samples"]), dtype=np.int16)
        length = np.zeros(len(columns[0]), dtype=np.int32)
        places = None if keys is None else uniform(keys, _STREAM_CROP, 1)[:, 0].tolist()

        def decode_one(row: int, payload: memoryview) -> None:
            wave = _unpacked(payload, fitted)
            if wave is None:
                with open_recording(payload, _limits(settings)) as recording:
                    wave = _wave(recording, fitted, 0.5 if places is None else places[row])
            samples[row, : len(wave)] = wave
            length[row] = len(wave)

        present, errors = decode_each(columns[0], decode_one)
        return Decoded({"samples": samples, "length": length}, present, errors)

    def unpack(self, settings: AudioSettings, fitted: Fitted, columns: Sequence[pa.Array]) -> list[pa.Array]:
        """Finished samples of recordings that are not cropped; longer ones stay encoded."""

        def replace(payload: memoryview) -> tuple[bytes, bytes] | None:
            with open_recording(payload, _limits(settings)) as recording:
                if recording.num_frames > _wanted(recording, fitted):
                    return None
                return to_raw(_wave(recording, fitted, 0.5), fitted.values["sample_rate_hz"])

        return [replace_each(columns[0], replace)]

    def measures(
        self, settings: AudioSettings, fitted: Fitted, arrays: Arrays
    ) -> dict[str, NDArray[np.float32]]:
        """``loudness_db``: root mean square below full scale, -100 for silence; ``duration_s`` of what the model sees.

        Loudness is that of every so many samples, at least 256 of the longest recording: a steady hiss or a voice shows
        in them as in all.
        """
        samples, length = arrays["samples"], arrays["length"].astype(np.int64)
        step = (
            max(1, samples.shape[1] // _MEASURED_SAMPLES) | 1
        )  # odd: round frequencies do not fall in step with it
        some = samples[:, ::step].astype(np.float32)
        power = np.einsum("ns,ns->n", some, some) / np.maximum(-(-length // step), 1)
        loudness = 10 * np.log10(np.maximum(power / FULL_SCALE**2, 10 ** (_SILENCE_DB / 10)))
        return {
            "loudness_db": loudness.astype(np.float32),
            "duration_s": (length / fitted.values["sample_rate_hz"]).astype(np.float32),
        }

    def transform(
        self, settings: AudioSettings, fitted: Fitted, tensors: Tensors, keys: Any | None
    ) -> Tensors:
        """``samples`` [B, N] to what the encoder asks for, augmented with keys.

        - ``spectrogram`` [B, 1, mels, frames]: log-mel, each record to mean 0, deviation 1 over the frames that hold
          sound. As in Whisper (Radford et al. 2022), what lies more than 80 dB below a record's peak is raised to that
          floor.
        - ``wave`` [B, N] float, full scale 1, and ``length`` [B], where its sound ends.
        """
        wave = tensors["samples"].to(torch.float32) / FULL_SCALE
        begin, length = torch.zeros_like(tensors["length"]), tensors["length"]
        if keys is not None and settings.time_shift > 0:
            wave, begin = _shift(wave, keys, settings.time_shift)
        if "wave" in settings.chosen()[0].inputs:
            if keys is not None:
                wave = _silence(wave, length, keys, settings.mask_time)
            return {"wave": wave, "length": (begin + length).clamp(0, wave.shape[1]) * (length > 0)}
        return {"spectrogram": _spectrogram(wave, begin, length, fitted, settings, keys).unsqueeze(1)}

    def encoder(self, settings: AudioSettings, fitted: Fitted, width: int) -> nn.Module:
        """As the settings name it; by default a small residual CNN on the spectrogram."""
        return build(settings, fitted.values, fitted.files, width)

    def render(self, values: Sequence[Any]) -> str:
        """An ``<audio>`` player of the first 10 seconds."""
        if values[0] is None:
            return "<em>missing</em>"
        try:
            with open_recording(values[0], _limits(AudioSettings())) as recording:
                rate_hz = recording.rate_hz
                mono = recording.mono(0, min(recording.num_frames, math.ceil(_RENDER_MAX_SECONDS * rate_hz)))
            payload = encode(mono, rate_hz, min(rate_hz, _MAX_FITTED_RATE_HZ))
        except DecodeError as error:
            return f"<em>{html.escape(str(error))}</em>"
        data = base64.b64encode(payload).decode("ascii")
        return f'<audio controls src="data:audio/flac;base64,{data}"></audio>'

    def shrink(self, payload: bytes, max_side_px: int | None, sample_rate_hz: int | None) -> bytes:
        """Mono 16-bit FLAC at ``sample_rate_hz`` where the recording's rate is higher."""
        with open_recording(payload, _limits(AudioSettings())) as recording:
            if sample_rate_hz is None or recording.rate_hz <= sample_rate_hz:
                return payload
            mono = recording.mono(0, recording.num_frames)
        return encode(mono, recording.rate_hz, sample_rate_hz)


def _limits(settings: AudioSettings) -> Limits:
    return Limits(settings.max_bytes, settings.max_samples)


def _wanted(recording: Recording, fitted: Fitted) -> int:
    """Frames of the recording that the model sees."""
    num_samples: int = fitted.values["num_samples"]
    rate_hz: int = fitted.values["sample_rate_hz"]
    return math.ceil(num_samples * recording.rate_hz / rate_hz)


def _wave(recording: Recording, fitted: Fitted, place: float) -> NDArray[np.int16]:
    """At most ``num_samples`` samples at ``sample_rate_hz``; a longer recording's from ``place``, 0 to 1."""
    wanted = _wanted(recording, fitted)
    start = int(place * (max(0, recording.num_frames - wanted) + 1))
    mono = recording.mono(start, min(wanted, recording.num_frames))
    mono = resample(mono, recording.rate_hz, fitted.values["sample_rate_hz"])
    return to_int16(mono[: fitted.values["num_samples"]])


def _unpacked(payload: memoryview, fitted: Fitted) -> NDArray[np.int16] | None:
    """The samples of a value from ``unpack`` for these fitted values; None for any other value."""
    raw = from_raw(payload)
    if raw is None:
        return None
    samples, rate_hz = raw
    fits = rate_hz == fitted.values["sample_rate_hz"] and len(samples) <= fitted.values["num_samples"]
    return samples if fits else None


def _hop(rate_hz: int, settings: AudioSettings) -> int:
    return max(1, round(settings.hop_s * rate_hz))


@functools.lru_cache(maxsize=32)
def mel_filters(rate_hz: int, num_bins: int, num_mels: int) -> torch.Tensor:
    """Triangular filters [num_mels, num_bins] of height 1, from 20 Hz to half the rate.

    Centres are even steps of mel(f) = 2595 log10(1 + f / 700) (O'Shaughnessy 1987; the scale of HTK, Young et al. 2006,
    "The HTK Book", section 5.4).
    """
    top_mel = 2595 * math.log10(1 + rate_hz / 2 / 700)
    bottom_mel = 2595 * math.log10(1 + 20 / 700)
    edges_hz = 700 * (
        10 ** (torch.linspace(bottom_mel, top_mel, num_mels + 2, dtype=torch.float64) / 2595) - 1
    )
    bins_hz = torch.linspace(0, rate_hz / 2, num_bins, dtype=torch.float64)
    rise = (bins_hz - edges_hz[:-2, None]) / (edges_hz[1:-1] - edges_hz[:-2])[:, None]
    fall = (edges_hz[2:, None] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0).to(torch.float32)


def _log_mel(wave: torch.Tensor, rate_hz: int, settings: AudioSettings) -> torch.Tensor:
    """[B, N] to log10 of mel power, [B, mels, frames]."""
    window_length = max(2, round(settings.window_s * rate_hz))
    # Twice the next power of two: finer bins, so that the low, narrow mel bands each get some.
    num_fft = 2 ** (math.ceil(math.log2(window_length)) + 1)
    spectrum = torch.stft(
        wave,
        n_fft=num_fft,
        hop_length=_hop(rate_hz, settings),
        win_length=window_length,
        window=torch.hann_window(window_length, device=wave.device),
        pad_mode="constant",
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    filters = mel_filters(rate_hz, power.shape[1], settings.num_mels).to(wave.device)
    return torch.log10(torch.matmul(filters, power).clamp(min=1e-10))


def _spectrogram(
    wave: torch.Tensor,
    begin: torch.Tensor,
    length: torch.Tensor,
    fitted: Fitted,
    settings: AudioSettings,
    keys: torch.Tensor | None,
) -> torch.Tensor:
    """[B, mels, frames] of sound that begins and lasts where ``begin`` and ``length`` [B] say."""
    rate_hz: int = fitted.values["sample_rate_hz"]
    mel = _log_mel(wave, rate_hz, settings)
    if keys is not None and settings.gain_db > 0:
        mel = mel + _gain(keys, settings, mel.shape[1])
    mel = torch.maximum(mel, mel.amax(dim=(1, 2), keepdim=True) - _LOG_RANGE)
    at = torch.arange(mel.shape[2], device=mel.device) * _hop(rate_hz, settings)
    mel = _normalise(mel, (at >= begin[:, None]) & (at < (begin + length)[:, None]))
    return mel if keys is None else _mask(mel, keys, settings)


def _normalise(mel: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Mean 0 and deviation 1 over the frames ``inside`` [B, frames], per record."""
    weight = inside[:, None, :].to(mel.dtype)
    count = (weight.sum(dim=2, keepdim=True) * mel.shape[1]).clamp(min=1)
    mean = (mel * weight).sum(dim=(1, 2), keepdim=True) / count
    variance = ((mel - mean).square() * weight).sum(dim=(1, 2), keepdim=True) / count
    return (mel - mean) / variance.sqrt().clamp(min=1e-2)


def _shift(wave: torch.Tensor, keys: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The wave moved by a random number of samples, zeros moving in; and where it now begins, [B]."""
    num_samples = wave.shape[1]
    offset = ((uniform_like(keys, _STREAM_SHIFT, 1)[:, 0] * 2 - 1) * share * num_samples).round().long()
    source = torch.arange(num_samples, device=wave.device) - offset[:, None]
    inside = (source >= 0) & (source < num_samples)
    return wave.gather(1, source.clamp(0, num_samples - 1)) * inside, offset


def _silence(wave: torch.Tensor, length: torch.Tensor, keys: torch.Tensor, share: float) -> torch.Tensor:
    """A random run of up to this share of the sound set to 0, as SpecAugment masks frames."""
    numbers = uniform_like(keys, _STREAM_MASK, 2)
    count = numbers[:, 0] * share * length
    start = numbers[:, 1] * (wave.shape[1] - count)
    at = torch.arange(wave.shape[1], device=wave.device)
    return wave.masked_fill((at >= start[:, None]) & (at < (start + count)[:, None]), 0.0)


def _gain(keys: torch.Tensor, settings: AudioSettings, num_mels: int) -> torch.Tensor:
    """Random smooth gain over the mel bands, log10 of power, [B, mels, 1] (as FilterAugment, Nam et al. 2022)."""
    anchors = (uniform_like(keys, _STREAM_GAIN, _GAIN_BANDS) * 2 - 1) * settings.gain_db / 10
    curve = nn.functional.interpolate(anchors[:, None, :], size=num_mels, mode="linear", align_corners=True)
    return curve.transpose(1, 2)


def _mask(mel: torch.Tensor, keys: torch.Tensor, settings: AudioSettings) -> torch.Tensor:
    """SpecAugment (Park et al. 2019): one run of bands and one of frames set to the mean, 0."""
    numbers = uniform_like(keys, _STREAM_MASK, 4)
    for axis, share in ((1, settings.mask_mels), (2, settings.mask_time)):
        size = mel.shape[axis]
        count = numbers[:, axis - 1] * share * size
        start = numbers[:, axis + 1] * (size - count)
        at = torch.arange(size, device=mel.device)
        masked = (at >= start[:, None]) & (at < (start + count)[:, None])
        mel = mel.masked_fill(masked.unsqueeze(3 - axis), 0.0)
    return mel


MODALITY = AudioModality()
