"""Audio: one rate, one length, damage found where libsndfile does not look; spectrograms that ignore padding."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.modalities import Decoded, Fitted
from xmodal_dist.modalities.audio import MODALITY, AudioSettings, mel_filters
from xmodal_dist.randomness import derive_keys

FITTED = Fitted({"sample_rate_hz": 8000, "num_samples": 4000})
STILL = {"gain_db": 0, "time_shift": 0, "mask_time": 0, "mask_mels": 0}


def _write(wave: Any, rate: int, name: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(wave), rate, format=name, subtype=subtype)
    return buffer.getvalue()


def _tone(hz: float, seconds: float, rate: int) -> np.ndarray[Any, Any]:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def _decode(payload: bytes, fitted: Fitted = FITTED, keys: Any = None, **values: Any) -> Decoded:
    return MODALITY.decode(AudioSettings(**values), fitted, [pa.array([payload], pa.binary())], keys)


def _reason(payload: bytes, **values: Any) -> str:
    return _decode(payload, **values).errors[0].reason


def _spectrogram(
    samples: Any, length: Any, keys: Any = None, fitted: Fitted = FITTED, **values: Any
) -> torch.Tensor:
    tensors = {
        "samples": torch.as_tensor(np.atleast_2d(samples), dtype=torch.int16),
        "length": torch.as_tensor(np.atleast_1d(length), dtype=torch.int32),
    }
    return MODALITY.transform(AudioSettings(**values), fitted, tensors, keys)["spectrogram"]


@pytest.mark.parametrize(
    ("name", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", None), ("OGG", None), ("MP3", None)]
)
@pytest.mark.parametrize("rate", [8000, 44100])
def test_formats_and_rates_give_the_same_tone(name: str, subtype: str | None, rate: int) -> None:
    decoded = _decode(_write(_tone(440, 0.4, rate), rate, name, subtype))
    assert not decoded.errors
    assert abs(int(decoded.arrays["length"][0]) - 3200) <= 200
    assert not decoded.arrays["samples"][0, decoded.arrays["length"][0] :].any()
    spectrum = np.abs(np.fft.rfft(decoded.arrays["samples"][0, 400:2400].astype(float)))
    assert abs(spectrum.argmax() * 4 - 440) <= 4
    assert 14_000 < np.abs(decoded.arrays["samples"][0, 400:2400]).max() < 18_500


def test_channels_are_averaged() -> None:
    wave = _tone(300, 0.2, 8000)
    stereo = _decode(_write(np.stack([wave, -wave], 1), 8000, subtype="FLOAT"))
    assert np.abs(stereo.arrays["samples"]).max() <= 1
    assert stereo.present[0]


def test_floats_beyond_full_scale_are_scaled_down() -> None:
    samples = _decode(_write(_tone(300, 0.2, 8000) * 60_000, 8000, subtype="FLOAT")).arrays["samples"]
    assert np.abs(samples).max() == 32767
    assert (np.abs(samples) == 32767).mean() < 0.2


def test_long_recordings_are_cropped_in_the_middle_or_by_key() -> None:
    ramp = np.linspace(0, 0.9, 16_000)
    payload = _write(ramp, 8000, "FLAC")
    decoded = _decode(payload)
    expected = np.rint(ramp[6000:10_000] * 32767)
    assert decoded.arrays["length"][0] == 4000
    assert np.abs(decoded.arrays["samples"][0] - expected).max() <= 2
    keys = derive_keys(0, 0, np.zeros(6, np.int64), np.arange(6))
    column = pa.array([payload] * 6)
    starts = MODALITY.decode(AudioSettings(), FITTED, [column], keys).arrays["samples"][:, 0]
    assert len(set(starts.tolist())) == 6
    assert (np.abs(starts) <= 0.75 * 0.9 * 32767 + 2).all()


def test_damage_that_libsndfile_does_not_report(make_sound: Callable[..., bytes]) -> None:
    for name in ("WAV", "FLAC", "OGG", "MP3"):
        payload = make_sound(name, 2.0)
        for share in (0.3, 0.7):
            assert _reason(
                payload[: int(len(payload) * share)], fitted=Fitted({**FITTED.values, "num_samples": 16_000})
            ) in (
                "media_truncated",
                "media_decode_error",
            )
    assert _reason(make_sound("WAV")[:30]) == "media_truncated"
    assert _reason(make_sound("OGG", 2.0)[:-1]) == "media_truncated"
    lying = bytearray(make_sound("WAV")[:244])
    lying[40:44] = (2_000_000_000).to_bytes(4, "little")
    assert _reason(bytes(lying)) == "media_truncated"


def test_wav_from_a_pipe_has_no_size_and_is_fine(make_sound: Callable[..., bytes]) -> None:
    payload = bytearray(make_sound("WAV"))
    payload[4:8] = payload[40:44] = b"\xff\xff\xff\xff"
    assert _decode(bytes(payload)).arrays["length"][0] == 4000


def test_reasons(make_sound: Callable[..., bytes]) -> None:
    wave = _tone(300, 0.1, 8000)
    for bad in (np.nan, np.inf):
        broken = wave.copy()
        broken[7] = bad
        assert _reason(_write(broken, 8000, subtype="FLOAT")) == "audio_nonfinite"
    assert _reason(_write(wave, 500)) == "audio_rate_unsupported"
    assert _reason(make_sound("WAV"), max_samples=100) == "media_too_large_decoded"
    assert _reason(make_sound("WAV"), max_bytes=100) == "media_too_large_bytes"
    assert _reason(_write(wave, 8000, "AIFF")) == "media_unrecognised"
    assert _reason("\ufeffhello".encode("utf-16")) == "media_unrecognised"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_never_escapes_as_another_error(data: st.DataObject, make_sound: Callable[..., bytes]) -> None:
    payload = bytearray(make_sound(data.draw(st.sampled_from(["WAV", "FLAC", "OGG"])), 0.1))
    for _ in range(data.draw(st.integers(1, 8))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    decoded = _decode(bytes(payload))
    assert bool(decoded.present[0]) != bool(decoded.errors)


def test_fit_takes_rate_and_length_from_the_sample() -> None:
    column = [_write(_tone(300, s, 44_100), 44_100) for s in (0.2, 0.3, 0.5)]
    fitted = MODALITY.fit(AudioSettings(), pa.table({"a": [*column, None, b"broken"]}))
    assert fitted.values["sample_rate_hz"] == 16_000
    assert 7900 <= fitted.values["num_samples"] <= 8000
    short = MODALITY.fit(AudioSettings(max_seconds=0.1, sample_rate_hz=8000), pa.table({"a": column}))
    assert short.values == {"sample_rate_hz": 8000, "num_samples": 800}


@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
def test_mel_filters_cover_the_spectrum(rate: int) -> None:
    window = round(0.025 * rate)
    filters = mel_filters(rate, 2 ** int(np.ceil(np.log2(window))) + 1, 64)
    assert filters.shape[0] == 64
    assert (filters.sum(dim=1) > 0).all()
    assert filters.min() >= 0 and filters.max() <= 1
    assert filters.argmax(dim=1).diff().min() >= 0


def test_spectrogram_shows_the_tone_and_ignores_loudness_and_padding() -> None:
    wave = np.rint(_tone(1000, 0.25, 8000) * 32767)
    noise = np.random.default_rng(0).normal(0, 300, 2000)
    padded = np.zeros(4000)
    padded[:2000] = wave + noise
    mel = _spectrogram(padded, 2000)[0, 0]
    edges = np.linspace(*(2595 * np.log10(1 + np.array([20, 4000]) / 700)), 66)
    expected = np.abs(edges[1:-1] - 2595 * np.log10(1 + 1000 / 700)).argmin()
    assert abs(int(mel[:, 5:20].mean(dim=1).argmax()) - expected) <= 1
    torch.testing.assert_close(_spectrogram(padded / 4, 2000)[0, 0, :, :24], mel[:, :24], atol=0.1, rtol=0)
    longer = Fitted({"sample_rate_hz": 8000, "num_samples": 8000})
    more = _spectrogram(np.concatenate([padded, np.zeros(4000)]), 2000, fitted=longer)[0, 0]
    torch.testing.assert_close(more[:, : mel.shape[1]], mel, atol=1e-4, rtol=1e-4)
    inside = mel[:, :25]
    assert abs(inside.mean()) < 1e-4 and abs(inside.std() - 1) < 1e-2


def test_augmentations_are_keyed_and_switch_off() -> None:
    wave = np.random.default_rng(0).normal(0, 3000, (3, 4000))
    keys = torch.tensor([1, 2, 3])
    plain = _spectrogram(wave, [4000] * 3)
    assert torch.equal(plain, _spectrogram(wave, [4000] * 3, keys, **STILL))
    for name, value in (("gain_db", 6), ("time_shift", 0.2), ("mask_time", 0.2), ("mask_mels", 0.2)):
        changed = _spectrogram(wave, [4000] * 3, keys, **{**STILL, name: value})
        assert not torch.equal(changed, plain)
        assert changed.isfinite().all()


def test_shrink_writes_flac_at_the_lower_rate(make_sound: Callable[..., bytes]) -> None:
    payload = make_sound("WAV", 0.5, 44_100)
    with soundfile.SoundFile(io.BytesIO(MODALITY.shrink(payload, None, 16_000))) as file:
        assert (file.format, file.samplerate, file.channels, file.frames) == ("FLAC", 16_000, 1, 8000)
    assert MODALITY.shrink(payload, None, 44_100) == payload
    assert MODALITY.shrink(payload, 64, None) == payload


def test_render_is_a_player(make_sound: Callable[..., bytes]) -> None:
    assert MODALITY.render([make_sound("OGG")]).startswith('<audio controls src="data:audio/flac;base64,')
    assert "media_empty" in MODALITY.render([b""])


def test_real_recordings_decode(shared_data: Path) -> None:
    folder = shared_data / "digits_av" / "audio"
    column = pa.array([path.read_bytes() for path in sorted(folder.iterdir())[:40]])
    fitted = MODALITY.fit(AudioSettings(), pa.table({"audio": column}))
    assert fitted.values["sample_rate_hz"] == 8000
    assert MODALITY.decode(AudioSettings(), fitted, [column], None).present.all()


def test_measures_are_loudness_below_full_scale_and_duration() -> None:
    waves = [0.5 * _tone(440, 0.5, 8000), 0.05 * _tone(440, 0.25, 8000), np.zeros(4000)]
    arrays = {"samples": np.zeros((3, 4000), np.int16), "length": np.zeros(3, np.int32)}
    for row, wave in enumerate(waves):
        arrays["samples"][row, : len(wave)] = np.round(wave / np.abs(_tone(440, 0.5, 8000)).max() * 32767)
        arrays["length"][row] = len(wave)
    found = MODALITY.measures(AudioSettings(), FITTED, dict(arrays))
    assert found["loudness_db"].tolist() == pytest.approx([-9.0, -29.0, -100.0], abs=0.5)
    assert found["duration_s"].tolist() == pytest.approx([0.5, 0.25, 0.5])
