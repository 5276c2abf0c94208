"""GIF animations: images build on each other, times are as browsers take them, damage is an error."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities import pixels as px
from xmodal_dist.modalities.clips import check, open_clip
from xmodal_dist.modalities.containers import Limits

LIMITS = Limits(1 << 28, 10_000_000, 10_000, 3600.0)


def _gif(*frames: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], **options)
    return buffer.getvalue()


def _moving(count: int = 8) -> bytes:
    frames = [Image.new("RGB", (24, 20), (30, 30, 30)) for _ in range(count)]
    for index, frame in enumerate(frames):
        frame.paste((250, 200, 10 * index), (2 * index, 4, 2 * index + 6, 12))
    return _gif(*frames, duration=50)


def _read(payload: bytes, indices: list[int]) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    with open_clip(payload, LIMITS) as clip:
        return list(clip.read(indices))


def test_any_images_are_those_of_reading_all() -> None:
    payload = _moving()
    whole = _read(payload, list(range(8)))
    for indices in ([0], [7], [1, 4, 6]):
        for index, picture in zip(indices, _read(payload, indices), strict=True):
            np.testing.assert_array_equal(picture, whole[index])
    limits = px.Limits(LIMITS.max_bytes, LIMITS.max_pixels)
    np.testing.assert_array_equal(whole[0], px.decode(payload, limits).pixels)


def test_one_image_is_a_clip_of_one_frame() -> None:
    payload = _gif(Image.new("RGB", (20, 10), (255, 0, 0)))
    with open_clip(payload, LIMITS) as clip:
        assert clip.times_s.tolist() == [0.0]
        assert (clip.height, clip.width) == (10, 20)
    np.testing.assert_array_equal(_read(payload, [0])[0], np.full((10, 20, 3), (255, 0, 0)))


def test_times_add_up_and_hasty_images_are_shown_as_long_as_in_browsers() -> None:
    frames = [Image.new("L", (8, 8), 40 * i) for i in range(4)]
    with open_clip(_gif(*frames, duration=[30, 0, 10, 500]), LIMITS) as clip:
        np.testing.assert_allclose(clip.times_s, [0, 0.03, 0.13, 0.23])
        assert clip.duration_s == pytest.approx(0.73)


def test_transparency_is_flattened_on_white_and_images_build_on_those_before() -> None:
    first, second = Image.new("RGBA", (16, 16), (0, 0, 0, 0)), Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    first.paste((200, 0, 0, 255), (0, 0, 8, 8))
    second.paste((0, 0, 200, 255), (8, 8, 16, 16))
    pictures = _read(_gif(first, second, duration=100, disposal=1), [0, 1])
    assert pictures[0][12, 2].tolist() == [255, 255, 255]
    assert pictures[0][2, 2].tolist() == pictures[1][2, 2].tolist() == [200, 0, 0]
    assert pictures[1][12, 12].tolist() == [0, 0, 200]


def test_damage_is_an_error() -> None:
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(4)]
    payload = _gif(*frames, duration=100)
    refused = 0
    for _ in range(60):
        damaged = bytearray(payload)
        at = int(rng.integers(900, len(payload) - 40))
        damaged[at : at + 24] = rng.bytes(24)
        try:
            check(bytes(damaged), LIMITS)
        except DecodeError as error:
            refused += 1
            assert error.reason in ("media_decode_error", "media_truncated") and "0x" not in error.detail
    assert refused > 40


def test_limits_hold_by_the_header() -> None:
    payload = bytearray(_moving())
    for limits, reason in (
        (LIMITS._replace(max_pixels=24 * 20 - 1), "media_too_large_decoded"),
        (LIMITS._replace(max_frames=7), "video_too_long"),
        (LIMITS._replace(max_seconds=0.39), "video_too_long"),
    ):
        with pytest.raises(DecodeError, match=reason):
            check(bytes(payload), limits)
    payload[6:10] = b"\xff\xff\xff\xff"
    with pytest.raises(DecodeError, match="media_too_large_decoded"):
        check(bytes(payload), LIMITS)
