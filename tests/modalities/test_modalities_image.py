"""Images: one defined conversion to RGB, limits held before decoding, crops, augmentation."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities import pixels as px
from xmodal_dist.modalities.image import MODALITY, ImageSettings
from xmodal_dist.randomness import derive_keys

STILL = {"rotation_deg": 0, "scale": 0, "shift": 0, "colour_jitter": 0}


def _save(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _pixels(payload: bytes, size: int) -> np.ndarray[Any, Any]:
    decoded = MODALITY.decode(ImageSettings(), Fitted({"size_px": size}), [pa.array([payload])], None)
    assert not decoded.errors, decoded.errors
    return decoded.arrays["pixels"][0]


def _reason(payload: bytes, **values: Any) -> str:
    column = pa.array([payload], pa.binary())
    decoded = MODALITY.decode(ImageSettings(**values), Fitted({"size_px": 28}), [column], None)
    return decoded.errors[0].reason


def _keys(count: int) -> np.ndarray[Any, Any]:
    return derive_keys(1, 0, np.zeros(count, np.int64), np.arange(count))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_pixels_are_those_of_pillow(
    make_image: Callable[..., bytes], subsampling: int, progressive: bool
) -> None:
    payload = make_image("JPEG", 33, 33, subsampling=subsampling, progressive=progressive, quality=80)
    expected = np.asarray(Image.open(io.BytesIO(payload)))
    assert np.abs(_pixels(payload, 33).astype(int) - expected).max() <= 1


def test_resize_is_that_of_pillow(make_image: Callable[..., bytes]) -> None:
    payload = make_image("PNG", 90, 90)
    expected = Image.open(io.BytesIO(payload)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(_pixels(payload, 32).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("size", [(100, 75), (75, 100), (500, 375), (64, 64), (90, 33)])
def test_exact_pixels_are_those_of_pillow(make_image: Callable[..., bytes], size: tuple[int, int]) -> None:
    side = min(size)
    corner = [(s - side) // 2 for s in size]
    for name in ("JPEG", "PNG"):
        payload = make_image(name, *size, quality=92)
        crop = Image.open(io.BytesIO(payload)).crop((*corner, corner[0] + side, corner[1] + side))
        for out in (48, 64, 224):
            expected = np.asarray(crop.resize((out, out), Image.Resampling.BILINEAR)).astype(int)
            difference = np.abs(_pixels(payload, out) - expected)
            assert difference.max() <= 2
            assert (difference > 1).mean() <= 2e-4


def test_transparency_is_flattened_on_white() -> None:
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert (_pixels(_save(clear, "PNG"), 16) == 255).all()
    half = Image.new("LA", (16, 16), (0, 128))
    assert np.abs(_pixels(_save(half, "PNG"), 16).astype(int) - 127).max() <= 1
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert (_pixels(_save(palette, "PNG"), 16)[0, 0] == (10, 20, 30)).all()
    assert (_pixels(_save(palette, "PNG", transparency=0), 16) == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16).repeat(4, 0).repeat(4, 0).repeat(4, 1)
    for name in ("PNG", "TIFF"):
        row = _pixels(_save(Image.fromarray(values), name), 16)[0, ::4]
        assert row.tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


def test_grey_cmyk_and_animations() -> None:
    assert (_pixels(_save(Image.new("L", (16, 16), 77), "JPEG"), 16) == 77).all()
    assert (_pixels(_save(Image.new("1", (16, 16), 1), "PNG"), 16) == 255).all()
    cmyk = _pixels(_save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), 16)
    assert cmyk[8, 8, 0] > 230 and cmyk[8, 8, 1:].max() < 60
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((0, 0, 255), (255, 0, 0))]
    for name in ("GIF", "WEBP"):
        first = _pixels(_save(frames[0], name, save_all=True, append_images=frames[1:]), 16)
        assert first[0, 0, 2] > 230 and first[0, 0, 0] < 30


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(make_image: Callable[..., bytes], orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    payload = make_image(name, 32, 32, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(payload))))
    assert np.abs(_pixels(payload, 32).astype(int) - expected).max() <= 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_image(make_image: Callable[..., bytes]) -> None:
    assert _pixels(
        make_image("JPEG", 32, 32, exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x01"), 32
    ).any()


def _png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def test_limits_hold_before_decoding(make_image: Callable[..., bytes]) -> None:
    for side in (9_000, 10_000, 60_000):
        bomb = _png_header(side, side) + b"\x00\x00\x00\x01IDAT\x00\x00\x00\x00\x00"
        assert _reason(bomb) == "media_too_large_decoded"
    payload = make_image("PNG", 40, 32)
    assert _reason(payload, max_pixels=40 * 32 - 1) == "media_too_large_decoded"
    assert _reason(payload, max_bytes=len(payload) - 1) == "media_too_large_bytes"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_cut_file_is_truncated(make_image: Callable[..., bytes], name: str) -> None:
    payload = make_image(name, 64, 64)
    for share in (0.1, 0.5, 0.9):
        assert _reason(payload[: int(len(payload) * share)]) == "media_truncated"


def test_damaged_and_foreign_files_get_their_own_reason(make_image: Callable[..., bytes]) -> None:
    png = bytearray(make_image("PNG", 64, 64))
    png[len(png) // 2 : -64] = bytes(len(png) - 64 - len(png) // 2)
    assert _reason(bytes(png)) == "media_decode_error"
    assert _reason(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00") == "media_unsupported_format"
    assert _reason(_save(Image.new("F", (8, 8), 0.5), "TIFF")) == "media_unsupported_format"
    assert _reason(b"<!doctype html><p>404") == "media_unrecognised"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_never_escapes_as_another_error(data: st.DataObject, make_image: Callable[..., bytes]) -> None:
    payload = bytearray(
        make_image(data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])), 20, 20)
    )
    for _ in range(data.draw(st.integers(1, 8))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    column = pa.array([bytes(payload)])
    decoded = MODALITY.decode(ImageSettings(), Fitted({"size_px": 28}), [column], None)
    assert bool(decoded.present[0]) != bool(decoded.errors)


def test_centre_crop_in_evaluation_and_keyed_crop_in_training(make_image: Callable[..., bytes]) -> None:
    payload = make_image("PNG", 60, 40)
    whole = np.asarray(Image.open(io.BytesIO(payload)))
    np.testing.assert_array_equal(_pixels(payload, 40), whole[:, 10:50])
    column = pa.array([payload] * 8)
    fitted = Fitted({"size_px": 32})
    pixels = MODALITY.decode(ImageSettings(), fitted, [column], _keys(8)).arrays["pixels"]
    assert len(np.unique(pixels.reshape(8, -1), axis=0)) == 8
    fixed = ImageSettings(crop_scale_min=1, crop_ratio_max=1)
    pictures = pa.array([make_image("PNG", 40, 40), payload] * 2)
    np.testing.assert_array_equal(
        MODALITY.decode(fixed, fitted, [pictures], _keys(4)).arrays["pixels"],
        MODALITY.decode(fixed, fitted, [pictures], None).arrays["pixels"],
    )


def _smooth(width: int, height: int, **options: Any) -> bytes:
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [127 + 100 * np.sin((9 + c) * x) * np.cos((8 - c) * y) for c in range(3)]
    return _save(Image.fromarray(np.stack(waves, -1).astype(np.uint8)), "JPEG", quality=92, **options)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [(1300, 901), (560, 720), (190, 160), (80, 60)])
def test_fast_pixels_are_nearly_the_exact_ones(size: tuple[int, int], train: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    column = pa.array([_smooth(*size), _smooth(*size, exif=exif)] * 8)
    keys = _keys(16) if train else None
    fitted = Fitted({"size_px": 64})
    exact, fast = (
        MODALITY.decode(ImageSettings(decode=mode), fitted, [column], keys).arrays["pixels"].astype(int)
        for mode in ("exact", "fast")
    )
    assert np.abs(exact - fast).max() <= 12
    assert np.abs(exact - fast).mean() <= 3


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.integers(8, 40),
    scale_min=st.floats(0.05, 1),
    ratio_max=st.floats(1, 4),
)
def test_unpacked_images_decode_to_the_same_and_no_crop_is_enlarged(
    width: int, height: int, size: int, scale_min: float, ratio_max: float
) -> None:
    payload = _smooth(width, height)
    fitted, keys = Fitted({"size_px": size}), _keys(3)
    for mode in ("exact", "fast"):
        options = ImageSettings(decode=mode, crop_scale_min=scale_min, crop_ratio_max=ratio_max)
        columns = [pa.array([payload] * 3)]
        unpacked = MODALITY.unpack(options, fitted, columns)
        for k in (None, keys):
            whole = MODALITY.decode(options, fitted, columns, k)
            again = MODALITY.decode(options, fitted, unpacked, k)
            np.testing.assert_array_equal(whole.arrays["pixels"], again.arrays["pixels"])
            assert again.present.all()
        picture = px.from_raw(unpacked[0][0].as_py())
        if picture is None:  # too large to be worth it
            assert unpacked[0].to_pylist() == columns[0].to_pylist()
            assert height * width > 8 * size**2
        elif picture.pixels.shape[:2] != (height, width):
            assert mode == "fast"
            assert min(picture.pixels.shape[:2]) * np.sqrt(scale_min / ratio_max) >= size


def test_pixels_unpacked_for_other_settings_are_refused() -> None:
    columns, fitted = [pa.array([_smooth(400, 300)])], Fitted({"size_px": 64})
    fast = MODALITY.unpack(ImageSettings(decode="fast"), fitted, columns)
    decoded = MODALITY.decode(ImageSettings(), fitted, fast, None)
    assert decoded.errors[0].reason == "media_unrecognised"


def test_fallbacks_are_counted(make_image: Callable[..., bytes]) -> None:
    cmyk = _save(Image.new("CMYK", (16, 16)), "JPEG")
    columns = [pa.array([cmyk, make_image("JPEG"), None, b"broken", cmyk, make_image("PNG")])]
    fitted = Fitted({"size_px": 16})
    expected = {"jpeg: simplejpeg -> Pillow": 2}
    assert MODALITY.decode(ImageSettings(), fitted, columns, None).fallbacks == expected
    unpacked = MODALITY.unpack(ImageSettings(), fitted, columns)
    assert unpacked != columns
    assert MODALITY.decode(ImageSettings(), fitted, unpacked, None).fallbacks == expected


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_turned_images_one_pixel_wide(make_image: Callable[..., bytes], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for size in ((1, 1), (1, 9), (9, 1)):
        assert _pixels(make_image("JPEG", *size, exif=exif), 16).any()


@pytest.mark.parametrize(("shape", "size"), [((1, 1), 28), ((1, 300), 28), ((50, 30), 32), ((400, 500), 224)])
def test_size_from_fit(make_image: Callable[..., bytes], shape: tuple[int, int], size: int) -> None:
    table = pa.table({"i": [make_image("PNG", *shape), None, b"broken"]})
    fitted = MODALITY.fit(ImageSettings(), table)
    assert fitted.values["size_px"] == size
    assert MODALITY.fit(ImageSettings(size_px=64), table).values["size_px"] == 64
    assert MODALITY.decode(ImageSettings(), fitted, [table["i"].combine_chunks()], None).present.tolist() == [
        True,
        False,
        False,
    ]


def test_transform_normalises_to_channels_last(make_image: Callable[..., bytes]) -> None:
    table = pa.table({"i": [make_image("PNG", 40, 40, seed=s) for s in range(6)]})
    fitted = MODALITY.fit(ImageSettings(), table)
    pixels = torch.from_numpy(
        MODALITY.decode(ImageSettings(), fitted, [table["i"].chunk(0)], None).arrays["pixels"]
    )
    x = MODALITY.transform(ImageSettings(), fitted, {"pixels": pixels}, None)["pixels"]
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.shape == (6, 3, 40, 40)
    torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(x.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)


def test_augmentation_switches_off_and_flips(make_image: Callable[..., bytes]) -> None:
    fitted = Fitted({"size_px": 40, "mean": [0.0] * 3, "std": [1.0] * 3})
    pixels = torch.from_numpy(_pixels(make_image("PNG", 40, 40), 40))[None]
    keys = torch.tensor([5])
    plain = MODALITY.transform(ImageSettings(), fitted, {"pixels": pixels}, None)["pixels"]
    still = MODALITY.transform(ImageSettings(**STILL), fitted, {"pixels": pixels}, keys)["pixels"]
    assert torch.equal(plain, still)
    flip = ImageSettings(**STILL, flip_probability=1)
    flipped = MODALITY.transform(flip, fitted, {"pixels": pixels}, keys)["pixels"]
    torch.testing.assert_close(flipped, plain.flip(3), atol=1e-4, rtol=0)


def test_shrink_keeps_format_family_and_small_files(make_image: Callable[..., bytes]) -> None:
    for name, family in (("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "WEBP"), ("BMP", "PNG")):
        payload = make_image(name, 120, 80)
        small = Image.open(io.BytesIO(MODALITY.shrink(payload, 40, None)))
        assert (small.format, small.size) == (family, (60, 40))
        assert MODALITY.shrink(payload, 80, None) == payload
        assert MODALITY.shrink(payload, None, 8000) == payload
    with pytest.raises(DecodeError, match="media_empty"):
        MODALITY.shrink(b"", 40, None)


def test_render_is_small(make_image: Callable[..., bytes]) -> None:
    page = MODALITY.render([make_image("JPEG", 640, 480)])
    assert page.startswith('<img alt="" width="160" height="120" src="data:image/png;base64,')


def test_real_images_decode(shared_data: Path) -> None:
    folder = shared_data / "emoji_groups" / "image"
    column = pa.array([path.read_bytes() for path in sorted(folder.iterdir())[:40]])
    fitted = MODALITY.fit(ImageSettings(), pa.table({"image": column}))
    assert fitted.values["size_px"] == 72
    assert MODALITY.decode(ImageSettings(), fitted, [column], _keys(40)).present.all()


def _measures(*images: np.ndarray[Any, Any]) -> dict[str, list[float]]:
    found = MODALITY.measures(ImageSettings(), Fitted({"size_px": 40}), {"pixels": np.stack(images)})
    return {name: values.tolist() for name, values in found.items()}


def test_measures_are_the_luma_of_the_picture() -> None:
    flat = np.full((40, 40, 3), 100, np.uint8)
    halves = flat.copy()
    halves[:, :20], halves[:, 20:] = 0, 200
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = 200
    found = _measures(flat, halves, red)
    assert found["brightness"] == pytest.approx([100, 100, 59.8], abs=20)
    assert found["brightness"][0] == pytest.approx(100, abs=0.01)
    assert found["contrast"] == pytest.approx([0, 100, 0], abs=2)
