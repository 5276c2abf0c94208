"""Containers of video by their first bytes, and whether a file ends before its container says it should."""

from __future__ import annotations

from typing import NamedTuple

from xmodal_dist.errors import DecodeError

__all__ = ["Limits", "Payload", "gif_delays", "recognise", "sniff"]

Payload = bytes | memoryview
"""An encoded clip; a memoryview is of unsigned bytes."""


class Limits(NamedTuple):
    """What is refused: more encoded bytes, more pixels of a frame, more frames, more seconds."""

    max_bytes: int
    max_pixels: int
    max_frames: int
    max_seconds: float

    def hold_size(self, height: int, width: int) -> None:
        """Raise :class:`DecodeError` where a frame has too many pixels."""
        if height * width > self.max_pixels:
            message = f"{width} x {height} pixels a frame; max_pixels is {self.max_pixels}"
            raise DecodeError("media_too_large_decoded", message)

    def hold_length(self, frames: int, seconds: float) -> None:
        """Raise :class:`DecodeError` where a clip is too long."""
        if frames > self.max_frames:
            raise DecodeError("video_too_long", f"{frames} or more frames; max_frames is {self.max_frames}")
        if seconds > self.max_seconds:
            raise DecodeError("video_too_long", f"{seconds:.1f} s; max_seconds is {self.max_seconds:g}")


_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
# What HEIF, AVIF, JPEG 2000, Canon raw and audio books put where a video names its brand.
_OTHER_BRANDS = frozenset(b"heic heix heim heis mif1 avif avis jp2 crx M4A M4B".split())
# Flash, MPEG program stream, Windows Media, Ogg.
_OTHER_MEDIA = (b"FLV", b"\x00\x00\x01\xba", b"0&\xb2u", b"OggS")
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


def sniff(payload: Payload) -> str | None:
    """Family of the container that the first bytes announce: MP4 (or MOV), Matroska (or WebM), AVI, GIF; else None."""
    head = bytes(payload[:12])
    if head[4:8] in _BOXES:
        return "MP4" if head[4:8] != b"ftyp" or head[8:12].strip() not in _OTHER_BRANDS else None
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI"
    starts = {_EBML: "Matroska", b"GIF87a": "GIF", b"GIF89a": "GIF"}
    return next((name for start, name in starts.items() if head.startswith(start)), None)


def recognise(payload: Payload, max_bytes: int) -> str:
    """Family of the container, where it is whole as far as its own account of its size goes.

    Raises:
        DecodeError: empty, too large, of no known family, or cut.
    """
    if not payload:
        raise DecodeError("media_empty", "0 bytes")
    if len(payload) > max_bytes:
        raise DecodeError("media_too_large_bytes", f"{len(payload)} bytes; max_bytes is {max_bytes}")
    name = sniff(payload)
    if name is None:
        head = bytes(payload[:8])
        if head.startswith(_OTHER_MEDIA) or head[4:8] == b"ftyp":
            raise DecodeError(
                "media_unsupported_format", "supported are MP4, MOV, WebM, Matroska, AVI and GIF"
            )
        raise DecodeError("media_unrecognised", f"first bytes {head.hex()} are of no known video format")
    if _is_cut(payload, name):
        raise DecodeError("media_truncated", f"{name} of {len(payload)} bytes ends early")
    return name


def _is_cut(payload: Payload, name: str) -> bool:
    """Whether the file ends before its container says it should."""
    if name == "GIF":
        return gif_delays(payload) is None
    if name == "Matroska":
        return _ends_in_segment(payload)
    return _ends_in_box(payload) if name == "MP4" else _ends_in_riff(payload)


def _ends_in_box(payload: Payload) -> bool:
    """Whether an MP4 or MOV file lacks its index or its data, or ends in a box (ISO/IEC 14496-12, 4.2)."""
    at, found = 0, set()
    while at + 8 <= len(payload):
        size, kind = int.from_bytes(payload[at : at + 4], "big"), bytes(payload[at + 4 : at + 8])
        if not kind.isascii():  # no box: something was put behind the video
            break
        found.add(kind)
        if size == 1:
            size = int.from_bytes(payload[at + 8 : at + 16], "big")
        at += max(size, 8) if size else len(payload)  # 0: up to the end
    return not {b"moov", b"mdat"} <= found or (at > len(payload) and size != 0)


def _ends_in_riff(payload: Payload) -> bool:
    """Whether an AVI file ends in one of its chunks."""
    at = 0
    while at + 8 <= len(payload):
        size = int.from_bytes(payload[at + 4 : at + 8], "little")
        if payload[at : at + 4] != b"RIFF" or not size:  # something else, or written to a pipe
            return False
        at += 8 + size + (size & 1)
    return at > len(payload)


def gif_delays(payload: Payload) -> list[int] | None:
    """How long each image of a GIF says it is shown, in 1/100 s; None where its blocks do not lead to its trailer.

    GIF89a, 17 to 27; 0 where an image says nothing.
    """
    at, delay, delays = 13 + _colours(payload, 10), 0, list[int]()
    while at < len(payload) and payload[at] != 0x3B:
        if payload[at] == 0x2C:  # an image: descriptor, colours, code size
            delays.append(delay)
            delay = 0
            at += 11 + _colours(payload, at + 9)
        elif payload[at] == 0x21:  # an extension and its label
            if payload[at + 1 : at + 3] == b"\xf9\x04":  # graphic control
                delay = int.from_bytes(payload[at + 4 : at + 6], "little")
            at += 2
        else:
            return None
        while at < len(payload) and payload[at]:
            at += payload[at] + 1
        at += 1
    return delays if at < len(payload) else None


def _colours(payload: Payload, at: int) -> int:
    """Bytes of the colour table that the flags at a place announce."""
    flags = payload[at] if at < len(payload) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _ends_in_segment(payload: Payload) -> bool:
    """Whether a Matroska file lacks its segment, or ends in it (RFC 8794, 4 and 6.2)."""
    at = 4
    for element in (None, _SEGMENT):
        if element is not None:
            if bytes(payload[at : at + 4]) != element:
                return at + 4 > len(payload)
            at += 4
        if at >= len(payload) or payload[at] == 0:
            return True
        length = 9 - payload[at].bit_length()
        unknown = (1 << 7 * length) - 1
        size = int.from_bytes(payload[at : at + length], "big") & unknown
        if element is not None and size == unknown:  # a live stream, of no known length
            return False
        at += length + size
    return at > len(payload)
