"""Encoded sound to mono samples: limits held before decoding, damage found where libsndfile does not look.

16-bit PCM in a plain WAV is a view of its bytes; everything else is read by libsndfile (soundfile).
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from xmodal_dist.errors import DecodeError

__all__ = [
    "FULL_SCALE",
    "MAX_RATE_HZ",
    "MIN_RATE_HZ",
    "Limits",
    "Payload",
    "Recording",
    "encode",
    "from_raw",
    "open_recording",
    "resample",
    "sniff",
    "to_int16",
    "to_raw",
]

Payload = bytes | memoryview
"""An encoded recording; a memoryview is of unsigned bytes."""

FULL_SCALE = 32767
"""The int16 sample of amplitude 1."""
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
"""Sample rates that are read."""

_FORMATS = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"})
# Chunk fmt of 16 bytes: format, channels, rate, bytes a second, bytes a frame, bits.
_WAV_FORMAT = struct.Struct("<8sHHIIHH")
_PCM16_RATES_HZ = range(MIN_RATE_HZ, 192_001)
# Rate of the samples; the first byte is of no format.
_RAW_HEADER = struct.Struct("<8sI4x")
_RAW_MAGIC = b"\x9cXMI16\x00\x01"


class Limits(NamedTuple):
    """What is refused before it is decoded: more encoded bytes, more samples (all channels together)."""

    max_bytes: int
    max_samples: int


class Recording(NamedTuple):
    """A recording whose header was read.

    Attributes:
        format: libsndfile's name of the format.
        rate_hz: frames a second.
        num_frames: its length.
        num_channels: samples in a frame.
        read: ``read(start, count)`` gives float32 frames [<= count, channels]; fewer where the file ends.
    """

    format: str
    rate_hz: int
    num_frames: int
    num_channels: int
    read: Callable[[int, int], NDArray[np.float32]]

    def mono(self, start: int, count: int) -> NDArray[np.float32]:
        """``count`` frames from ``start`` as the mean of the channels, full scale 1.

        Raises:
            DecodeError: damaged.
        """
        frames = self.read(start, count)
        if len(frames) < count:
            raise DecodeError(
                "media_truncated",
                f"{self.format}: {start + len(frames)} of {self.num_frames} frames are there",
            )
        mono: NDArray[np.float32] = frames[:, 0] if self.num_channels == 1 else frames.mean(axis=1)
        if not np.isfinite(mono).all():
            raise DecodeError("audio_nonfinite", "samples are NaN or infinite")
        return mono


def sniff(payload: Payload) -> str | None:
    """Format that the first bytes announce; None if it is of no known one."""
    head = bytes(payload[:12])
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] in (b"fLaC", b"OggS"):
        return "FLAC" if head[:1] == b"f" else "OGG"
    # An ID3 tag, or the sync word of an MPEG audio frame of layer III.
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE6 == 0xE2):
        return "MP3"
    return None


@contextlib.contextmanager
def open_recording(payload: Payload, limits: Limits) -> Iterator[Recording]:
    """Read the header only, and hold it against the limits.

    Raises:
        DecodeError: not sound, damaged, or above a limit.
    """
    if not payload:
        raise DecodeError("media_empty", "0 bytes")
    if len(payload) > limits.max_bytes:
        raise DecodeError("media_too_large_bytes", f"{len(payload)} bytes; max_bytes is {limits.max_bytes}")
    name = sniff(payload)
    if name is None:
        head = bytes(payload[:8]).hex()
        raise DecodeError("media_unrecognised", f"first bytes {head} are of no known sound format")
    plain = _plain_wav(payload) if name == "WAV" else None
    if plain is not None:
        _hold(plain, limits)
        yield plain
        return
    if _is_cut(payload, name):
        raise DecodeError("media_truncated", f"{name} of {len(payload)} bytes ends early")
    try:
        file = soundfile.SoundFile(io.BytesIO(payload))
    except soundfile.SoundFileError as error:
        # libsndfile has no code of its own for a header that ends early.
        reason = "media_truncated" if len(payload) < 128 else "media_decode_error"
        raise DecodeError(reason, f"{name} of {len(payload)} bytes: {_message(error)}") from error
    with file:
        recording = Recording(
            file.format,
            file.samplerate,
            file.frames,
            file.channels,
            lambda start, count: _read(file, start, count),
        )
        _hold(recording, limits)
        yield recording


def resample(mono: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """The samples at another rate; at least one."""
    if from_hz == to_hz:
        return mono
    resampled: NDArray[np.float32] = soxr.resample(mono, from_hz, to_hz)
    return resampled if len(resampled) else mono[:1]


def to_int16(mono: NDArray[np.float32]) -> NDArray[np.int16]:
    """Full scale 1 to int16; what exceeds it is scaled down to it."""
    peak = max(1.0, float(mono.max()), -float(mono.min()))
    return np.rint(mono.astype(np.float64) * (FULL_SCALE / peak)).astype(np.int16)


def encode(mono: NDArray[np.float32], from_hz: int, to_hz: int) -> bytes:
    """16-bit FLAC at another rate."""
    buffer = io.BytesIO()
    soundfile.write(buffer, to_int16(resample(mono, from_hz, to_hz)), to_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def to_raw(samples: NDArray[np.int16], rate_hz: int) -> tuple[bytes, bytes]:
    """Decoded samples as the two parts of a value that :func:`from_raw` knows and :func:`open_recording` refuses."""
    return _RAW_HEADER.pack(_RAW_MAGIC, rate_hz), samples.astype("<i2").tobytes()


def from_raw(payload: Payload) -> tuple[NDArray[np.int16], int] | None:
    """Samples (a view) and rate in Hz of a value that :func:`to_raw` made; None for any other value."""
    size = len(payload) - _RAW_HEADER.size
    if payload[:8] != _RAW_MAGIC or size <= 0 or size % 2:
        return None
    return np.frombuffer(payload, "<i2", offset=_RAW_HEADER.size), _RAW_HEADER.unpack_from(payload)[1]


def _wav_data(payload: Payload) -> tuple[int, int]:
    """Where the samples of a WAV begin, and how many bytes its header says they take; (beyond the end, 0) if cut."""
    at = 12
    while at + 8 <= len(payload) and payload[at : at + 4] != b"data":
        at += 8 + int.from_bytes(payload[at + 4 : at + 8], "little") + (payload[at + 4] & 1)
    return at + 8, int.from_bytes(payload[at + 4 : at + 8], "little")


def _plain_wav(payload: Payload) -> Recording | None:
    """A WAV of 16-bit PCM, mono or stereo, complete and with nothing strange about it; None for any other."""
    if payload[:4] != b"RIFF" or len(payload) < 44:
        return None
    begin, size = _wav_data(payload)
    chunk, kind, channels, rate_hz, bytes_per_s, frame_bytes, bits = _WAV_FORMAT.unpack_from(payload, 12)
    is_plain = (
        chunk == b"fmt \x10\x00\x00\x00"
        and (kind, bits, frame_bytes) == (1, 16, 2 * channels)
        and channels in (1, 2)
        and rate_hz in _PCM16_RATES_HZ
        and bytes_per_s == rate_hz * frame_bytes
        and begin == 44
        and begin + size == len(payload) == int.from_bytes(payload[4:8], "little") + 8
        and size % frame_bytes == 0
    )
    if not is_plain:
        return None
    frames = np.frombuffer(payload, "<i2", offset=begin).reshape(-1, channels)

    def read(start: int, count: int) -> NDArray[np.float32]:
        return frames[start : start + count].astype(np.float32) * np.float32(1 / 32768)

    return Recording("WAV", rate_hz, len(frames), channels, read)


def _is_cut(payload: Payload, name: str) -> bool:
    """Whether a WAV or OGG file ends before it says it should; libsndfile takes such a file for a shorter one."""
    if name == "WAV":
        begin, size = _wav_data(payload)
        # Writers to pipes leave the size at its maximum.
        return begin > len(payload) or (size < 0x7FFFFFFF and begin + size > len(payload))
    if name == "OGG":  # RFC 3533: the last page has the end-of-stream flag and a table of segment sizes
        payload = bytes(payload)
        at = payload.rfind(b"OggS")
        table = payload[at + 27 : at + 27 + payload[at + 26]] if at + 27 <= len(payload) else b""
        return not table or not payload[at + 5] & 4 or at + 27 + len(table) + sum(table) > len(payload)
    return False


def _hold(recording: Recording, limits: Limits) -> None:
    rate_hz, frames, channels = recording.rate_hz, recording.num_frames, recording.num_channels
    if recording.format not in _FORMATS:
        known = ", ".join(sorted(_FORMATS))
        raise DecodeError("media_unsupported_format", f"{recording.format}; known are {known}")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise DecodeError("audio_rate_unsupported", f"{rate_hz} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ}")
    if frames * channels > limits.max_samples:
        message = f"{frames} frames x {channels} channels; max_samples is {limits.max_samples}"
        raise DecodeError("media_too_large_decoded", message)
    if frames == 0:
        raise DecodeError("audio_zero_length", "the recording holds no samples")


def _message(error: Exception) -> str:
    return str(getattr(error, "error_string", error))


def _read(file: soundfile.SoundFile, start: int, count: int) -> Any:
    try:
        if file.tell() != start:
            file.seek(start)
        return file.read(count, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        # A FLAC stream that ends early loses its decoder's sync; its header was sound.
        reason = "media_truncated" if file.format == "FLAC" else "media_decode_error"
        raise DecodeError(reason, f"{file.format}: {_message(error)}") from error
