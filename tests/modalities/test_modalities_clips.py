"""Frames come by their presentation time and are those of a plain decoder; damage and excess are errors."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xmodal_dist.dataset.quarantine import REASON_CODES
from xmodal_dist.errors import DecodeError, UsageError
from xmodal_dist.modalities.clips import check, from_raw, open_clip, to_raw
from xmodal_dist.modalities.containers import Limits

av: Any = pytest.importorskip("av", reason="clips are decoded by PyAV: pip install 'xmodal-dist[video]'")

LIMITS = Limits(1 << 28, 10_000_000, 10_000, 3600.0)
OPEN_GOP = {"x264-params": "open-gop=1:b-pyramid=normal:bframes=3:scenecut=0"}
FILMS: dict[str, dict[str, Any]] = {
    "mpeg4 with B-frames": {"name": "mp4", "b_frames": 2, "gop": 8},
    "motion JPEG": {"name": "mov"},
    "VP8": {"name": "webm", "gop": 8},
    "VP9": {"name": "matroska", "gop": 8},
    "GIF": {"name": "gif"},
    "AVI with B-frames": {"name": "avi", "b_frames": 2, "gop": 8},
    "H.264": {"name": "mp4", "codec": "libx264", "b_frames": 3, "gop": 8},
    "H.264, open GOPs": {"name": "matroska", "codec": "libx264", "gop": 8, "options": OPEN_GOP},
    "H.264 in AVI": {"name": "avi", "codec": "libx264", "b_frames": 3, "gop": 8},
}


def _film(make_video: Callable[..., bytes], name: str, count: int = 30) -> bytes:
    settings = FILMS[name]
    if settings.get("codec", "mpeg4") not in av.codecs_available:
        pytest.skip(f"this PyAV has no {settings['codec']}")
    return make_video(**settings, count=count, width=48, height=48)


def _plain(payload: bytes) -> list[NDArray[np.uint8]]:
    with av.open(io.BytesIO(payload)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _read(payload: bytes, indices: list[int] | None = None) -> list[NDArray[np.uint8]]:
    with open_clip(payload, LIMITS) as clip:
        return list(clip.read(range(len(clip.times_s)) if indices is None else indices))


def _reason(payload: bytes, **limits: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        check(payload, LIMITS._replace(**limits))
    assert caught.value.reason in REASON_CODES
    return caught.value.reason


@pytest.mark.parametrize("name", FILMS)
def test_any_frames_are_those_of_a_plain_decoder(make_video: Callable[..., bytes], name: str) -> None:
    payload = _film(make_video, name)
    expected = _plain(payload)
    assert len(expected) == 30
    rng = np.random.default_rng(0)
    choices = [list(range(30)), [0], [29], [0, 29], *(sorted(rng.choice(30, 4, False)) for _ in range(12))]
    for indices in choices:
        for index, picture in zip(indices, _read(payload, indices), strict=True):
            np.testing.assert_array_equal(picture, expected[index])
    check(payload, LIMITS)


@pytest.mark.parametrize("name", ["H.264", "VP8", "motion JPEG"])
def test_few_packets_are_decoded_for_few_frames(make_video: Callable[..., bytes], name: str) -> None:
    from xmodal_dist.modalities import clips

    with clips._open(_film(make_video, name), LIMITS) as film:
        fed: list[int] = []
        decode = film._decode
        film._decode = lambda place: (fed.append(place), decode(place))[1]  # type: ignore[method-assign, func-returns-value]
        assert len(list(film.frames([2, 26]))) == 2
    assert len(fed) < 20 and max(fed) > 20


@pytest.mark.parametrize("name", ["mp4", "matroska", "gif"])
def test_times_are_those_of_presentation(make_video: Callable[..., bytes], name: str) -> None:
    times = [0, 1, 2, 7, 8, 20]
    with open_clip(make_video(name, 6, times=times), LIMITS) as clip:
        np.testing.assert_allclose(clip.times_s, np.array(times) / 10, atol=2e-3)
        assert clip.duration_s > 2.0


def test_turned_videos_are_turned_back(make_video: Callable[..., bytes]) -> None:
    payload = bytearray(make_video("mp4", 3, width=48, height=32))
    at = payload.index(b"tkhd") + 44
    turn = [0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30]  # by 90 degrees clockwise
    payload[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in turn)
    for picture, stored in zip(_read(bytes(payload)), _plain(bytes(payload)), strict=True):
        np.testing.assert_array_equal(picture, np.rot90(stored, -1))


def test_limits_hold_before_anything_is_decoded(make_video: Callable[..., bytes]) -> None:
    payload = make_video("mp4", 12)
    assert _reason(payload, max_bytes=100) == "media_too_large_bytes"
    assert _reason(payload, max_pixels=40 * 32 - 1) == "media_too_large_decoded"
    assert _reason(payload, max_frames=11) == "video_too_long"
    assert _reason(payload, max_seconds=1.1) == "video_too_long"
    check(payload, Limits(len(payload), 40 * 32, 12, 1.25))


def test_sound_alone_is_no_video() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert _reason(buffer.getvalue()) == "video_no_stream"


@pytest.mark.parametrize("name", ["mpeg4 with B-frames", "VP8", "H.264", "motion JPEG"])
def test_damage_is_an_error_or_does_no_harm_and_never_a_black_frame(
    make_video: Callable[..., bytes], name: str
) -> None:
    payload = _film(make_video, name, 12)
    rng = np.random.default_rng(1)
    outcomes: Counter[str] = Counter()
    for _ in range(60):
        damaged = bytearray(payload)
        at = int(rng.integers(0, len(payload) - 40))
        damaged[at : at + 24] = rng.bytes(24)
        try:
            pictures = _read(bytes(damaged))
        except DecodeError as error:
            assert error.reason in REASON_CODES and "0x" not in error.detail
            outcomes[error.reason] += 1
        else:
            assert all(picture.any() for picture in pictures)
            outcomes["read"] += 1
    assert outcomes["media_decode_error"] > 5


def test_damage_is_met_where_it_is(make_video: Callable[..., bytes]) -> None:
    payload = bytearray(make_video("mov", 12))
    with av.open(io.BytesIO(bytes(payload))) as container:
        last = [bytes(packet) for packet in container.demux(video=0)][-2]
    at = bytes(payload).index(last)
    payload[at : at + len(last)] = bytes(len(last))
    assert len(_read(bytes(payload), [0, 5, 10])) == 3
    with pytest.raises(DecodeError, match="media_decode_error"):
        _read(bytes(payload), [11])
    assert _reason(bytes(payload)) == "media_decode_error"


def test_raw_clips_give_the_same_and_are_no_files(make_video: Callable[..., bytes]) -> None:
    payload = make_video("mp4")
    with open_clip(payload, LIMITS) as clip:
        pictures = list(clip.read(range(12)))
        value = b"".join(bytes(part) for part in to_raw(clip, pictures))
        raw = from_raw(value)
        assert raw is not None and raw.duration_s == clip.duration_s
        np.testing.assert_array_equal(raw.times_s, clip.times_s)
        for index, picture in zip([3, 7], raw.read([3, 7]), strict=True):
            np.testing.assert_array_equal(picture, pictures[index])
    assert from_raw(payload) is None and from_raw(value[:-1]) is None
    assert _reason(value) == "media_unrecognised"


def test_threads_do_not_disturb_each_other(make_video: Callable[..., bytes]) -> None:
    films = [make_video(name, seed=seed) for seed, name in enumerate(["mp4", "webm", "gif", "avi"] * 4)]
    expected = [_plain(film)[5] for film in films]
    with ThreadPoolExecutor(8) as pool:
        for found, picture in zip(pool.map(lambda film: _read(film, [5]), films), expected, strict=True):
            np.testing.assert_array_equal(found[0], picture)


def test_without_pyav_the_extra_is_named(
    make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = make_video("mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install 'xmodal-dist\[video\]'"):
        check(payload, LIMITS)
    with pytest.raises(DecodeError, match="media_empty"):
        check(b"", LIMITS)
