"""Containers are known by their first bytes, and a file that is cut anywhere is known to be."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities.containers import Limits, gif_delays, recognise, sniff

EBML = b"\x1aE\xdf\xa3\x84abcd"
SEGMENT = b"\x18S\x80g"


def _box(name: bytes, content: bytes = b"content") -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + name + content


def _gif(colours: int) -> bytes:
    frames = [Image.fromarray(np.full((9, 7), i, np.uint8)).quantize(colours) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], comment=b"a; comment")
    return buffer.getvalue()


def _reason(payload: bytes, max_bytes: int = 10_000) -> str:
    with pytest.raises(DecodeError) as caught:
        recognise(payload, max_bytes)
    return caught.value.reason


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x00\x00\x00\x18ftypisom", "MP4"),
        (b"\x00\x00\x00\x14ftypqt  ", "MP4"),
        (b"\x00\x00\x10\x00moovmvhd", "MP4"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81", "Matroska"),
        (b"RIFF\x00\x10\x00\x00AVI LIST", "AVI"),
        (b"GIF89a\x10\x00\x10\x00", "GIF"),
        (b"\x00\x00\x00\x18ftypheic", None),
        (b"\x00\x00\x00\x18ftypavif", None),
        (b"\x00\x00\x00\x18ftypM4A ", None),
        (b"RIFF\x00\x10\x00\x00WAVEfmt ", None),
        (b"RIFF\x00\x10\x00\x00WEBPVP8 ", None),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"", None),
    ],
)
def test_sniff(head: bytes, name: str | None) -> None:
    assert sniff(head) == sniff(memoryview(head)) == name


def test_what_is_no_video_has_a_reason() -> None:
    assert _reason(b"") == "media_empty"
    assert _reason(b"x" * 11, max_bytes=10) == "media_too_large_bytes"
    assert _reason(b"some text of no format") == "media_unrecognised"
    assert _reason(b"\x00\x00\x00\x18ftypheic" + bytes(20)) == "media_unsupported_format"
    assert _reason(b"FLV\x01\x05" + bytes(20)) == "media_unsupported_format"


WHOLE = {
    "MP4": _box(b"ftyp", b"isomxxxx") + _box(b"moov") + _box(b"mdat", bytes(50)),
    "MP4, large size": _box(b"ftyp") + b"\0\0\0\1mdat" + (30).to_bytes(8, "big") + bytes(14) + _box(b"moov"),
    "Matroska": EBML + SEGMENT + b"\x40\x20" + bytes(32),
    "AVI": b"RIFF" + (44).to_bytes(4, "little") + b"AVI " + bytes(40),
    "GIF": _gif(8),
    "GIF, many colours": _gif(200),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_cut_anywhere_is_noticed(name: str) -> None:
    whole = WHOLE[name]
    assert recognise(whole, 10_000) == name.split(",")[0]
    assert {_reason(whole[:end]) for end in range(12, len(whole))} == {"media_truncated"}


@pytest.mark.parametrize(
    "payload",
    [
        EBML + SEGMENT + b"\x01" + b"\xff" * 7 + bytes(9),  # a live stream has no length
        _box(b"ftyp") + _box(b"moov") + b"\0\0\0\0mdat" + bytes(99),  # up to the end
        _box(b"moov") + _box(b"mdat") + b"\xff\xd8\xff\xe0\xff\xd8\xff\xe0" + bytes(20),  # a trailer
        b"RIFF\0\0\0\0AVI " + bytes(30),  # written to a pipe
    ],
)
def test_open_ends_are_no_cuts(payload: bytes) -> None:
    recognise(payload, 10_000)


@pytest.mark.parametrize("name", ["mp4", "mov", "webm", "matroska", "avi", "gif"])
def test_real_files_cut_anywhere(make_video: Callable[..., bytes], name: str) -> None:
    whole = make_video(name)
    recognise(whole, len(whole))
    ends = range(12, len(whole), max(1, len(whole) // 50))
    assert {_reason(whole[:end], len(whole)) for end in ends} == {"media_truncated"}


def test_delays_of_a_gif() -> None:
    frames = [Image.new("L", (5, 5), i) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=[30, 70, 1000])
    assert gif_delays(buffer.getvalue()) == [3, 7, 100]
    assert gif_delays(buffer.getvalue() + b"after the trailer") == [3, 7, 100]
    assert gif_delays(b"GIF89a") is None


def test_limits() -> None:
    limits = Limits(10, 20, 30, 40.0)
    limits.hold_size(4, 5)
    limits.hold_length(30, 40.0)
    for hold, reason in (
        (lambda: limits.hold_size(3, 7), "media_too_large_decoded"),
        (lambda: limits.hold_length(31, 1.0), "video_too_long"),
        (lambda: limits.hold_length(1, 40.1), "video_too_long"),
    ):
        with pytest.raises(DecodeError, match=reason):
            hold()
