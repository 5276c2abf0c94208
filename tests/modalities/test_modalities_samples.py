"""Plain WAVs without libsndfile give libsndfile's samples; finished samples survive a cache."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities import samples

LIMITS = samples.Limits(2**26, 200_000_000)
LIST = b"LIST\x1a\x00\x00\x00INFOISFT\x0e\x00\x00\x00Lavf58.29.100\x00"


def _wav(frames: np.ndarray[Any, Any], rate_hz: int = 8000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, frames, rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _of_soundfile(payload: bytes, start: int, count: int) -> tuple[int, int, np.ndarray[Any, Any]]:
    with soundfile.SoundFile(io.BytesIO(payload)) as file:
        file.seek(start)
        return file.samplerate, file.frames, file.read(count, dtype="float32", always_2d=True).mean(axis=1)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(-32768, 32767), min_size=4, max_size=40),
    channels=st.sampled_from([1, 2, 3]),
    rate_hz=st.sampled_from([1000, 8000, 44_100, 192_000]),
    chunk=st.sampled_from([b"", LIST]),
)
def test_plain_wavs_are_those_of_libsndfile(
    values: list[int], channels: int, rate_hz: int, chunk: bytes
) -> None:
    frames = np.array(values[: len(values) // channels * channels], np.int16).reshape(-1, channels)
    payload = _wav(frames, rate_hz)
    payload = payload[:36] + chunk + payload[36:]
    payload = payload[:4] + (len(payload) - 8).to_bytes(4, "little") + payload[8:]
    with samples.open_recording(memoryview(payload), LIMITS) as recording:
        for start in (0, len(frames) // 2):
            count = len(frames) - start
            rate, num_frames, expected = _of_soundfile(payload, start, count)
            np.testing.assert_array_equal(recording.mono(start, count), expected)
            assert (recording.rate_hz, recording.num_frames) == (rate, num_frames)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 43), value=st.integers(0, 255), cut=st.integers(0, 3))
def test_a_damaged_header_is_read_as_libsndfile_reads_it_or_refused(at: int, value: int, cut: int) -> None:
    payload = bytearray(_wav(np.arange(-300, 300, dtype=np.int16).reshape(-1, 2)))
    payload[at] = value
    payload = payload[: len(payload) - cut]
    try:
        with samples.open_recording(bytes(payload), LIMITS) as recording:
            mono = recording.mono(0, recording.num_frames)
    except DecodeError:
        return
    rate_hz, num_frames, expected = _of_soundfile(bytes(payload), 0, -1)
    assert (recording.rate_hz, recording.num_frames) == (rate_hz, num_frames)
    np.testing.assert_array_equal(mono, expected)


def test_limits_hold_for_every_way_of_reading(make_sound: Callable[..., bytes]) -> None:
    for name, subtype in (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", None)):
        payload = make_sound(name, 0.5, 8000, 0, subtype)
        refused = [
            (samples.Limits(99, 4000), "media_too_large_bytes"),
            (samples.Limits(2**20, 3999), "too_large_decoded"),
        ]
        for limits, reason in refused:
            with pytest.raises(DecodeError, match=reason), samples.open_recording(payload, limits):
                pass


def test_int16_is_exact_and_scaled_down_only_beyond_full_scale() -> None:
    wave = np.array([-1, -0.5, 0, 0.25, 1], np.float32)
    assert samples.to_int16(wave).tolist() == [-32767, -16384, 0, 8192, 32767]
    assert samples.to_int16(wave * -4).tolist() == [32767, 16384, 0, -8192, -32767]


def test_raw_samples_come_back_as_a_view() -> None:
    wave = np.array([-32767, 0, 5], np.int16)
    value = b"".join(samples.to_raw(wave, 16_000))
    found = samples.from_raw(memoryview(value))
    assert found is not None
    assert (found[0].tolist(), found[1]) == (wave.tolist(), 16_000)
    assert not found[0].flags.owndata
    with pytest.raises(DecodeError, match="media_unrecognised"), samples.open_recording(value, LIMITS):
        pass
    for broken in (b"", value[:8], value[:16], value[:-1], struct.pack("<I", 1) + value[4:]):
        assert samples.from_raw(broken) is None
