"""Encoded video to RGB frames: limits held before decoding, frames found by presentation time, damage refused.

MP4, MOV, WebM, Matroska and AVI are read by FFmpeg (PyAV), in the caller's thread. All packets are listed first, which
decodes nothing; then each frame that is asked for is decoded from the keyframe before it, and frames that nothing
refers to are left out on the way. Where this does not find a frame, all is decoded from the start. GIF is read by
Pillow.
"""

from __future__ import annotations

import contextlib
import io
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xmodal_dist.errors import DecodeError, UsageError
from xmodal_dist.modalities.containers import Limits, Payload, recognise
from xmodal_dist.modalities.gifs import Animation

__all__ = ["Clip", "check", "from_raw", "open_clip", "require_av", "to_raw"]

_Pixels = NDArray[np.uint8]

_DEMUXERS = {"MP4": "mov", "Matroska": "matroska", "AVI": "avi"}
_GUESSED_RATE_HZ = 25
_SKIPPING_CODECS = ("h264", "hevc", "mpeg4")  # libdav1d shows other frames in the place of those left out
_ATTACHED_PICTURE = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC

# Number of frames, their height and width, duration in seconds; the first byte is of no format.
_RAW_HEADER = struct.Struct("<8s3I4xd")
_RAW_MAGIC = b"\x9cXMVID\x00\x01"


class Clip(NamedTuple):
    """A clip whose frames are known, and not yet decoded.

    Attributes:
        height: of its frames as stored, in pixels.
        width: of its frames as stored, in pixels.
        times_s: [n] when each frame is shown, from 0, ascending.
        duration_s: until the last frame is no longer shown.
        read: ``read(indices)`` gives the frames of ascending, distinct indices one after the other, each [H, W, 3] RGB
            as it is meant to be seen (turned; transparency flattened on white). Raises :class:`DecodeError` where one
            cannot be decoded.
    """

    height: int
    width: int
    times_s: NDArray[np.float64]
    duration_s: float
    read: Callable[[Sequence[int]], Iterator[NDArray[np.uint8]]]


def require_av() -> Any:
    """PyAV.

    Raises:
        UsageError: it is not installed; names the extra.
    """
    try:
        import av
    except ImportError as error:
        raise UsageError(
            "video needs PyAV: pip install 'xmodal-dist[video]' on every machine of the run"
        ) from error
    return av


@contextlib.contextmanager
def open_clip(payload: Payload, limits: Limits) -> Iterator[Clip]:
    """List the frames of a clip, and hold it against the limits; nothing is decoded.

    Raises:
        DecodeError: not a video, damaged, or above a limit.
        UsageError: PyAV is not installed.
    """
    with _open(payload, limits) as film:
        yield Clip(film.height, film.width, film.times_s, film.duration_s, film.read)


def check(payload: Payload, limits: Limits) -> None:
    """Decode a clip whole.

    Raises:
        DecodeError: not a video, damaged, or above a limit.
        UsageError: PyAV is not installed.
    """
    with _open(payload, limits) as film:
        film.check()


def to_raw(clip: Clip, pictures: Sequence[NDArray[np.uint8]]) -> list[bytes | memoryview]:
    """A clip and all its frames, of one size, as the parts of a value that :func:`from_raw` knows."""
    height, width = pictures[0].shape[:2]
    header = _RAW_HEADER.pack(_RAW_MAGIC, len(pictures), height, width, clip.duration_s)
    return [header, clip.times_s.tobytes(), *(np.ascontiguousarray(p).data for p in pictures)]


def from_raw(payload: Payload) -> Clip | None:
    """The clip of a value that :func:`to_raw` made, its frames as views; None for any other value."""
    if payload[:8] != _RAW_MAGIC or len(payload) < _RAW_HEADER.size:
        return None
    _, count, height, width, duration_s = _RAW_HEADER.unpack_from(payload)
    begin = _RAW_HEADER.size + count * 8
    if not 0 < count * height * width * 3 == len(payload) - begin:
        return None
    times_s = np.frombuffer(payload, np.float64, count, _RAW_HEADER.size)
    pictures = np.frombuffer(payload, np.uint8, offset=begin).reshape(count, height, width, 3)
    return Clip(height, width, times_s, duration_s, lambda indices: (pictures[i] for i in indices))


@contextlib.contextmanager
def _open(payload: Payload, limits: Limits) -> Iterator[_Film | Animation]:
    name = recognise(payload, limits.max_bytes)
    if name == "GIF":
        yield Animation(payload, limits)
        return
    av = require_av()
    # A named demuxer: some of the others open further files, or addresses.
    options = {"max_pixels": str(_allocated(limits)), "threads": "1"}
    try:
        container = av.open(
            io.BytesIO(payload), format=_DEMUXERS[name], options=options, metadata_errors="replace"
        )
    except (av.FFmpegError, ValueError) as error:
        raise _broken(name, error) from error
    with container:
        try:
            film = _Film(av, container, name, limits)
        except av.FFmpegError as error:
            raise _broken(name, error) from error
        yield film


def _allocated(limits: Limits) -> int:
    """Pixels of the largest frame that a decoder may make: what it allocates is rounded up to whole blocks."""
    return 2 * limits.max_pixels + (1 << 16)


def _broken(name: str, error: Exception) -> DecodeError:
    """Name a failure of FFmpeg's; its messages may hold the address of an object, which no two runs share."""
    return DecodeError("media_decode_error", f"{name}: {getattr(error, 'strerror', None) or error}")


def _video_stream(container: Any, name: str) -> Any:
    """The first stream of pictures that is not a cover."""
    streams = [s for s in container.streams.video if not s.disposition.value & _ATTACHED_PICTURE]
    if not streams:
        raise DecodeError("video_no_stream", f"{name}: there is no stream of pictures in it")
    if streams[0].codec_context is None:
        raise DecodeError("media_unsupported_format", f"{name}: there is no decoder for its pictures")
    return streams[0]


# --- frames ----------------------------------------------------------------------------------------------------------


class _Film:
    """The video stream of an open container.

    Attributes:
        height: of its frames as stored, in pixels.
        width: of its frames as stored, in pixels.
        codec: its decoder.
        pts: presentation times of its frames in the stream's unit, ascending and distinct.
        times_s: the same in seconds, from 0.
        duration_s: until the end of the last frame.
    """

    def __init__(self, av: Any, container: Any, name: str, limits: Limits) -> None:
        stream = _video_stream(container, name)
        self.codec = stream.codec_context
        self._av, self._name = av, name
        # Before 17, PyAV had no other way.
        self._scaling = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
        self.height, self.width = self.codec.height, self.codec.width
        if not self.height or not self.width:
            message = f"{name}: frames are of no size, or of more pixels than max_pixels, {limits.max_pixels}"
            raise DecodeError("media_too_large_decoded", message)
        limits.hold_size(self.height, self.width)
        # What a stream says of damage is an error, and nothing is concealed.
        self.codec.options = {"err_detect": "explode", "max_pixels": str(_allocated(limits))}
        self.codec.thread_count = 1
        self._packets = _packets(container, stream, limits)
        times = [packet.pts for packet in self._packets]
        shown = [not packet.is_discard for packet in self._packets]  # by an edit list
        unit_s = float(stream.time_base)
        # AVI counts frames as they are stored, which is not how they are shown.
        self._timed = name != "AVI" and None not in times and len(set(times)) == len(times)
        if not self._timed:
            times, unit_s = list(range(len(times))), 1 / float(stream.average_rate or _GUESSED_RATE_HZ)
        self._times = times
        self.pts = sorted(pts for pts, is_shown in zip(times, shown, strict=True) if is_shown)
        if not self.pts:
            raise DecodeError("video_no_frames", f"{name}: its stream of pictures has no frame")
        keys = [i for i, packet in enumerate(self._packets) if packet.is_keyframe]
        self._key_places = sorted(keys, key=times.__getitem__)
        self._key_pts = [times[i] for i in self._key_places]
        self.times_s = (np.array(self.pts, dtype=np.float64) - self.pts[0]) * unit_s
        self.duration_s = float(self.times_s[-1]) + self._last_units() * unit_s
        limits.hold_length(len(self.pts), self.duration_s)

    def _last_units(self) -> int:
        """How long the last frame is shown: as it says, else as long as the one before it."""
        own = self._packets[self._times.index(self.pts[-1])].duration if self._timed else 1
        return int(own or (self.pts[-1] - self.pts[-2] if len(self.pts) > 1 else 0))

    def read(self, indices: Sequence[int]) -> Iterator[_Pixels]:
        """The frames of ascending, distinct indices as RGB."""
        for frame in self.frames(indices):
            yield _rgb(frame, self._scaling)

    def check(self) -> None:
        """Decode all frames."""
        for _ in self.frames(range(len(self.pts))):
            pass

    def frames(self, indices: Sequence[int]) -> Iterator[Any]:
        """The frames of ascending, distinct indices, as PyAV has them."""
        wanted = [self.pts[i] for i in indices]
        done = 0
        if self._timed:
            with contextlib.suppress(self._av.FFmpegError):
                for frame in self._sought(wanted):
                    yield frame
                    done += 1
        if done < len(wanted):
            try:
                yield from self._from_start(wanted[done:])
            except self._av.FFmpegError as error:
                raise _broken(self._name, error) from error

    def _sought(self, wanted: Sequence[int]) -> Iterator[Any]:
        """Frames of these times from the keyframes before them; ends early where one does not come."""
        needed = set(wanted)
        place, floor = 0, min(self._times)
        queue: deque[Any] = deque()
        for pts in wanted:
            while queue and queue[0].pts < pts:
                queue.popleft()
            start = self._keyframe(pts)
            if start > place and not queue:
                self.codec.flush_buffers()
                place, floor = start, self._times[start]
            while not queue:
                if place > len(self._packets):
                    return
                # A frame shown before the keyframe and stored after it refers to what was not decoded.
                if place == len(self._packets) or self._times[place] >= floor:
                    self._skip(place < len(self._packets) and self._times[place] not in needed)
                    queue.extend(f for f in self._decode(place) if f.pts is not None and f.pts >= pts)
                place += 1
            if queue[0].pts != pts or queue[0].is_corrupt:
                return
            yield queue.popleft()

    def _keyframe(self, pts: int) -> int:
        """Place of the packet to begin with for the frame of this time."""
        place = bisect_right(self._key_pts, pts)
        return self._key_places[place - 1] if place else 0

    def _from_start(self, wanted: Sequence[int]) -> Iterator[Any]:
        """Frames of these times, with everything before them decoded."""
        self.codec.flush_buffers()
        self._skip(False)
        before: tuple[int, Any] | None = None
        rest = deque(wanted)
        for pts, frame in self._all():
            while rest and pts > rest[0]:
                yield self._standing(rest.popleft(), before)
            if not rest:
                return
            if frame.is_corrupt:
                raise DecodeError("media_decode_error", f"{self._name}: a frame is damaged")
            if pts == rest[0]:
                rest.popleft()
                yield frame
            before = (pts, frame)
        for pts in rest:
            yield self._standing(pts, before)

    def _all(self) -> Iterator[tuple[int, Any]]:
        count = 0
        for place in range(len(self._packets) + 1):
            for frame in self._decode(place):
                if not self._timed or frame.pts is not None:
                    yield (frame.pts if self._timed else count), frame
                count += 1

    def _standing(self, pts: int, before: tuple[int, Any] | None) -> Any:
        """The frame that stays where a packet shows none of its own (a hidden reference of VP8, a second field)."""
        if before is None or before[0] < self.pts[max(0, self.pts.index(pts) - 1)]:
            at_s = self.times_s[self.pts.index(pts)]
            raise DecodeError(
                "media_decode_error", f"{self._name}: the frame at {at_s:.2f} s cannot be decoded"
            )
        return before[1]

    def _decode(self, place: int) -> Any:
        """Frames that come when the packet of a place goes in; those still held after the last."""
        return self.codec.decode(self._packets[place] if place < len(self._packets) else None)

    def _skip(self, skips: bool) -> None:
        if self.codec.name in _SKIPPING_CODECS:
            self.codec.skip_frame = "NONREF" if skips else "DEFAULT"


def _packets(container: Any, stream: Any, limits: Limits) -> list[Any]:
    """The packets of the stream as stored."""
    found = []
    for packet in container.demux(stream):
        if packet.size == 0:  # a repetition in AVI, or the end
            continue
        if packet.is_corrupt:
            raise DecodeError("media_truncated", "a frame reaches beyond the end of the file")
        found.append(packet)
        if len(found) > limits.max_frames:
            limits.hold_length(len(found), 0.0)
    return found


def _rgb(frame: Any, options: Mapping[str, int]) -> _Pixels:
    shape = frame.format
    if shape.has_palette or any(c.is_alpha for c in shape.components):
        layers = frame.to_ndarray(format="rgba", **options)
        pixels = layers[..., :3]
        if (layers[..., 3] != 255).any():
            alpha = layers[..., 3:].astype(np.uint32)
            pixels = ((pixels * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    else:
        pixels = frame.to_ndarray(format="rgb24", **options)
    return np.rot90(pixels, round(frame.rotation / 90) % 4)
