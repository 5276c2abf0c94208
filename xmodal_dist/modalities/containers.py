"""Containers of video by their first bytes, and whether a file ends before its container says it should."""

from __future__ import annotations

from xmodal_dist.errors import DecodeError

__all__ = ["Payload", "recognise", "sniff"]

Payload = bytes | memoryview
"""An encoded clip; a memoryview is of unsigned bytes."""

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
        return _gif_lacks_end(payload)
    if name == "Matroska":
        return _ends_in_segment(payload)
    at, big = 0, name == "MP4"
    while at + 8 <= len(payload):
        size = int.from_bytes(payload[at : at + 4], "big") if big else _riff_size(payload, at)
        if big and size == 1:  # ISO/IEC 14496-12, 4.2: the size follows the type
            size = int.from_bytes(payload[at + 8 : at + 16], "big")
        if size == 0:  # up to the end
            return False
        if (
            big and not bytes(payload[at + 4 : at + 8]).isascii()
        ):  # no box: something was put behind the video
            return False
        at += max(size, 8)
    return at != len(payload) if big else at > len(payload)


def _riff_size(payload: Payload, at: int) -> int:
    """Bytes of a RIFF chunk; 0 where its writer left them open, or it is none."""
    size = int.from_bytes(payload[at + 4 : at + 8], "little")
    return 8 + size + (size & 1) if bytes(payload[at : at + 4]) == b"RIFF" and size else 0


def _gif_lacks_end(payload: Payload) -> bool:
    """Whether the blocks of a GIF do not lead to its trailer (GIF89a, 17 to 27)."""
    at = 13 + _colours(payload, 10)
    while at < len(payload) and payload[at] != 0x3B:
        if payload[at] == 0x2C:  # an image: descriptor, colours, code size
            at += 11 + _colours(payload, at + 9)
        elif payload[at] == 0x21:  # an extension and its label
            at += 2
        else:
            return True
        while at < len(payload) and payload[at]:
            at += payload[at] + 1
        at += 1
    return at >= len(payload)


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
