"""JPEG without Pillow gives the pixels of Pillow, which takes what libjpeg-turbo refuses; raw pixels survive."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities import pixels

LIMITS = pixels.Limits(2**26, 64_000_000)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


def _jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _of_pillow(payload: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(payload))).convert("RGB"))


def _assert_pillow(payload: bytes, fallback: bool = False) -> None:
    picture = pixels.decode(memoryview(payload), LIMITS)
    expected = _of_pillow(payload)
    np.testing.assert_array_equal(picture.pixels, expected)
    assert (picture.height, picture.width) == expected.shape[:2]
    assert (picture.fallback == "jpeg: simplejpeg -> Pillow") is fallback
    assert pixels.decode(payload, LIMITS).pixels.tobytes() == picture.pixels.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (33, 18), (64, 64)])
def test_plain_jpegs_are_those_of_pillow(make_image: Callable[..., bytes], size: tuple[int, int]) -> None:
    for options in ({"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"quality": 30}):
        _assert_pillow(make_image("JPEG", *size, **options))
    _assert_pillow(_jpeg(Image.new("L", size, 77)))
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    _assert_pillow(_jpeg(Image.fromarray(noise), keep_rgb=True))


def test_what_the_fast_decoder_refuses_is_decoded_and_named(make_image: Callable[..., bytes]) -> None:
    _assert_pillow(_jpeg(Image.new("CMYK", (16, 16), (0, 255, 255, 0))), fallback=True)
    payload = make_image("JPEG", 64, 64)
    at = payload.index(b"\xff\xda")
    stray = payload[:at] + b"\x00\x00" + payload[at:]  # libjpeg: extraneous bytes before marker
    _assert_pillow(stray, fallback=True)
    assert pixels.decode(make_image("PNG", 8, 8), LIMITS).fallback is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_wherever_its_orientation_stands(
    make_image: Callable[..., bytes], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for size in ((40, 24), (3, 1), (1, 3), (1, 1)):
        _assert_pillow(make_image("JPEG", *size, exif=exif, comment=b"before it", icc_profile=b"x" * 3000))
    _assert_pillow(make_image("JPEG", 40, 24, xmp=XMP.replace(b"6", str(orientation).encode())))


def test_bytes_that_look_like_an_orientation_do_not_turn(make_image: Callable[..., bytes]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    segment = b"\xff\xe1\x00\x40" + exif.tobytes()
    _assert_pillow(make_image("JPEG", 40, 24, comment=segment))
    _assert_pillow(make_image("JPEG", 40, 24) + segment)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_called_what_pillow_calls_it(data: st.DataObject, make_image: Callable[..., bytes]) -> None:
    whole = make_image("JPEG", 24, 20, progressive=data.draw(st.booleans()))
    payload = bytearray(whole[: data.draw(st.integers(3, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4)) if len(payload) > 3 else 0):
        payload[data.draw(st.integers(3, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        expected = _of_pillow(bytes(payload))
    except Exception:
        with pytest.raises(DecodeError) as caught:
            pixels.decode(bytes(payload), LIMITS)
        assert caught.value.reason in ("media_truncated", "media_decode_error")
    else:
        assert np.abs(pixels.decode(bytes(payload), LIMITS).pixels.astype(int) - expected).max() <= 1


def test_size_and_limits_come_from_the_header(make_image: Callable[..., bytes]) -> None:
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        payload = memoryview(make_image(name, 40, 24))
        assert pixels.measure(payload, LIMITS) == (24, 40)
        for act in (pixels.measure, pixels.decode):
            with pytest.raises(DecodeError, match="40 x 24 pixels; max_pixels is 959"):
                act(payload, pixels.Limits(2**20, 959))
            with pytest.raises(DecodeError, match="media_too_large_bytes"):
                act(payload, pixels.Limits(99, 960))


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(800, 536), (999, 1000), (150, 333)])
def test_a_reduced_decode_looks_the_same(factor: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    asked: list[int] = []

    def reduction(short_px: int) -> int:
        asked.append(short_px)
        return factor

    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    waves = [127 + 90 * np.sin(x / (50 + c)) * np.cos(y / (60 + c)) for c in range(3)]
    payload = _jpeg(Image.fromarray(np.stack(waves, -1).astype(np.uint8)), quality=90, exif=exif)
    picture = pixels.decode(payload, LIMITS, reduction)
    assert asked == [min(size)]
    assert (picture.height, picture.width) == size
    assert picture.pixels.shape == (-(-size[0] // factor), -(-size[1] // factor), 3)
    whole = Image.fromarray(_of_pillow(payload))
    small = np.asarray(whole.resize(picture.pixels.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(small - picture.pixels).max() <= 8


def test_raw_pixels_come_back_as_a_view() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    value = b"".join(pixels.to_raw(pixels.Picture(image[:, ::-1], 10, 14, "jpeg: simplejpeg -> Pillow")))
    picture = pixels.from_raw(memoryview(value))
    assert picture is not None
    np.testing.assert_array_equal(picture.pixels, image[:, ::-1])
    assert picture[1:] == (10, 14, "jpeg: simplejpeg -> Pillow")
    assert not picture.pixels.flags.owndata
    for act in (pixels.measure, pixels.decode):
        with pytest.raises(DecodeError, match="media_unrecognised"):
            act(value, LIMITS)
    for broken in (b"", value[:8], value[:40], value + b"x", b"\xff" + value[1:]):
        assert pixels.from_raw(broken) is None
