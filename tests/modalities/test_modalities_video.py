"""Clips: frames are spread over the presentation time, at random in training, cropped alike; figures and fitting."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities import Decoded, Fitted, load
from xmodal_dist.modalities.video import MODALITY, VideoSettings
from xmodal_dist.randomness import derive_keys

STATISTICS = {"mean": [0.5] * 3, "std": [0.25] * 3}
STILL = {"rotation_deg": 0, "scale": 0, "shift": 0, "colour_jitter": 0}


def _fitted(num_frames: int = 4, size_px: int = 16) -> Fitted:
    return Fitted({"size_px": size_px, "num_frames": num_frames, **STATISTICS})


def _keys(count: int, epoch: int = 0) -> Any:
    return derive_keys(3, epoch, np.zeros(count, np.int64), np.arange(count))


def _decode(
    payloads: list[bytes], keys: Any = None, num_frames: int = 4, size_px: int = 16, **settings: Any
) -> Decoded:
    return MODALITY.decode(
        VideoSettings(**settings), _fitted(num_frames, size_px), [pa.array(payloads, pa.binary())], keys
    )


def _counting(durations_ms: list[int], width: int = 16, height: int = 16) -> bytes:
    """A GIF whose image i has the level 10 (i + 1) everywhere."""
    frames = [Image.new("L", (width, height), 10 * (i + 1)) for i in range(len(durations_ms))]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations_ms)
    return buffer.getvalue()


def _levels(decoded: Decoded, row: int = 0) -> list[int]:
    """Which image each frame is, from 0."""
    frames = decoded.arrays["frames"][row]
    return [int(level) // 10 - 1 for level in frames[:, 8, 8, 0]]


def test_frames_are_spread_over_the_time_and_not_over_the_frames() -> None:
    assert _levels(_decode([_counting([100] * 8)])) == [1, 3, 5, 7]
    # One second of the first image, a tenth of each other: it is what one sees most of the time.
    assert _levels(_decode([_counting([1000] + [100] * 10)])) == [0, 0, 3, 8]


def test_in_training_each_segment_gives_a_frame_of_its_own_at_random() -> None:
    payloads = [_counting([100] * 16)] * 64
    decoded = _decode(payloads, _keys(64))
    found = np.array([_levels(decoded, row) for row in range(64)])
    assert np.array_equal(found // 4, np.tile(np.arange(4), (64, 1)))
    assert all(len(np.unique(found[:, segment])) == 4 for segment in range(4))
    again = _decode(payloads, _keys(64, epoch=1))
    assert not np.array_equal(found, [_levels(again, row) for row in range(64)])


def test_short_clips_give_all_their_frames_and_say_how_many() -> None:
    for keys in (None, _keys(2)):
        decoded = _decode([_counting([100] * 3), _counting([100])], keys)
        assert decoded.arrays["length"].tolist() == [3, 1]
        assert _levels(decoded, 0)[:3] == [0, 1, 2] and _levels(decoded, 1)[0] == 0
        assert not decoded.arrays["frames"][0, 3:].any() and not decoded.arrays["frames"][1, 1:].any()
        np.testing.assert_allclose(decoded.arrays["duration_s"], [0.3, 0.1])


def test_all_frames_of_a_clip_are_cropped_alike(make_video: Callable[..., bytes]) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    other = noise.copy()
    other.putpixel((0, 0), (0, 0, 0))  # else the two would be stored as one
    buffer = io.BytesIO()
    noise.save(buffer, "GIF", save_all=True, append_images=[other, noise], duration=100)
    decoded = _decode([buffer.getvalue()] * 4, _keys(4), crop_scale_min=0.3)
    frames = decoded.arrays["frames"]
    assert decoded.arrays["length"].tolist() == [3] * 4
    np.testing.assert_array_equal(frames[:, 0], frames[:, 2])
    assert not np.array_equal(frames[0], frames[1])


def test_a_frame_that_cannot_be_decoded_makes_the_record_an_error_and_leaves_no_frames(
    make_video: Callable[..., bytes],
) -> None:
    import av

    payload = bytearray(make_video("mov", 12))
    with av.open(io.BytesIO(bytes(payload))) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    at = bytes(payload).index(packets[10])
    payload[at : at + len(packets[10])] = bytes(len(packets[10]))
    decoded = _decode([bytes(payload)])
    assert decoded.errors[0].reason == "media_decode_error"
    assert not decoded.present[0] and not decoded.arrays["frames"].any()
    assert decoded.arrays["length"].tolist() == [0]


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_bytes": 9}, "media_too_large_bytes"),
        ({"max_pixels": 200}, "media_too_large_decoded"),
        ({"max_frames": 5}, "video_too_long"),
        ({"max_seconds": 0.5}, "video_too_long"),
    ],
)
def test_limits_are_settings(limit: dict[str, Any], reason: str) -> None:
    decoded = _decode([_counting([100] * 6)], **limit)
    assert decoded.errors[0].reason == reason
    assert next(iter(limit)) in decoded.errors[0].detail


def test_fit_takes_sizes_and_lengths_from_the_sample() -> None:
    table = pa.table({"clip": [_counting([100] * n, 64, 40) for n in (3, 5)]})
    values = MODALITY.fit(VideoSettings(), table).values
    assert (values["size_px"], values["num_frames"]) == (40, 5)
    long = pa.table({"clip": [_counting([50] * 20, 400, 300)]})
    values = MODALITY.fit(VideoSettings(), long).values
    assert (values["size_px"], values["num_frames"]) == (112, 8)
    values = MODALITY.fit(VideoSettings(size_px=24, num_frames=16), long).values
    assert (values["size_px"], values["num_frames"]) == (24, 16)
    grey = MODALITY.fit(VideoSettings(), pa.table({"clip": [_counting([100] * 2)]})).values
    assert grey["mean"] == pytest.approx([15 / 255] * 3, abs=1e-3)  # frames that are not there do not count


def test_a_gif_is_a_video_only_where_one_is_asked_for(make_image: Callable[..., bytes]) -> None:
    gif = _counting([100] * 4)
    for column in (pa.array([gif]), pa.array(["a.gif"])):
        assert MODALITY.infer("c", column) == 0
        assert load("image").infer("c", column) == 1
    assert ".gif" in MODALITY.declared_suffixes and ".gif" in load("image").suffixes
    MODALITY.check([gif])
    with pytest.raises(DecodeError, match="media_unrecognised"):
        MODALITY.check([make_image("PNG")])


def test_measures_are_of_the_frames_that_are_there() -> None:
    decoded = _decode([_counting([100] * 3), _counting([200])])
    found = MODALITY.measures(VideoSettings(), _fitted(), decoded.arrays)
    np.testing.assert_allclose(found["brightness"], [20, 10], rtol=1e-4)
    np.testing.assert_allclose(found["motion"], [10, np.nan], rtol=1e-4)
    np.testing.assert_allclose(found["duration_s"], [0.3, 0.2])


def test_frames_of_a_record_are_augmented_alike() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (3, 1, 12, 12, 3), dtype=np.uint8)
    tensors = {
        "frames": torch.from_numpy(np.repeat(frame, 4, axis=1)),
        "length": torch.full((3,), 4, dtype=torch.int32),
    }
    keys = torch.from_numpy(_keys(3).view(np.int64))
    settings = VideoSettings(flip_probability=0.5)
    moved = MODALITY.transform(settings, _fitted(), tensors, keys)
    assert moved["pixels"].shape == (3, 4, 3, 12, 12)
    assert torch.equal(moved["keys"], keys)
    for place in range(1, 4):
        assert torch.equal(moved["pixels"][:, 0], moved["pixels"][:, place])
    still = MODALITY.transform(VideoSettings(**STILL), _fitted(), tensors, keys)
    expected = (tensors["frames"].permute(0, 1, 4, 2, 3).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(still["pixels"], expected)
    assert not torch.allclose(moved["pixels"], expected)


def test_long_clips_stay_encoded_and_short_ones_are_unpacked() -> None:
    payloads = [_counting([100] * 4), _counting([100] * 20)]
    unpacked = MODALITY.unpack(VideoSettings(), _fitted(2), [pa.array(payloads, pa.binary())])[0].to_pylist()
    assert unpacked[0] != payloads[0] and unpacked[1] == payloads[1]


def test_render_shows_frames_from_the_first_to_the_last(make_video: Callable[..., bytes]) -> None:
    text = MODALITY.render([make_video("webm", 12)])
    assert text.startswith("<img") and "5 of 12 frames, 1.2 s" in text
    assert 'width="208"' in text  # five of 40 px, and four gaps


def test_any_image_encoder_is_one_of_clips() -> None:
    names = {architecture.name for architecture in load("image").settings.architectures}
    assert {architecture.name for architecture in VideoSettings.architectures} == names
    with pytest.raises(ValueError, match="pooling"):
        VideoSettings(encoder_options={"pooling": "sum"})
    with pytest.raises(ValueError, match="unknown encoder"):
        VideoSettings(encoder="lstm")
