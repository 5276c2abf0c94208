"""GIF animations to frames by Pillow: FFmpeg takes what its decoder cannot read for the rest of the frame before."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities.containers import Limits, Payload, gif_delays
from xmodal_dist.modalities.pixels import to_rgb

__all__ = ["Animation"]

# Browsers show an image that asks for less as long as this, in 1/100 s.
_LEAST_DELAY, _USUAL_DELAY = 2, 10


class Animation:
    """The images of a GIF, which build on each other and so are decoded from the first.

    Attributes:
        height: in pixels.
        width: in pixels.
        times_s: [n] when each is shown, from 0.
        duration_s: until the last is no longer shown.

    Args:
        payload: a whole GIF.
        limits: what to refuse.

    Raises:
        DecodeError: it has no image, or is above a limit.
    """

    def __init__(self, payload: Payload, limits: Limits) -> None:
        self.width, self.height = (int.from_bytes(payload[at : at + 2], "little") for at in (6, 8))
        limits.hold_size(self.height, self.width)
        delays = gif_delays(payload)
        if not delays:
            raise DecodeError("video_no_frames", "GIF: there is no image in it")
        ends_s = np.cumsum([d if d >= _LEAST_DELAY else _USUAL_DELAY for d in delays]) / 100
        self.times_s = np.concatenate([[0.0], ends_s[:-1]])
        self.duration_s = float(ends_s[-1])
        limits.hold_length(len(delays), self.duration_s)
        self._payload, self._limits = payload, limits

    def read(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """The images of ascending, distinct indices as RGB, transparency flattened on white."""
        try:
            with Image.open(io.BytesIO(self._payload), formats=("GIF",)) as image:
                for index in indices:
                    image.seek(index)
                    # An image may reach beyond the size that the header says, and then enlarges the whole.
                    self._limits.hold_size(image.height, image.width)
                    yield to_rgb(image)
        except DecodeError:
            raise
        except Exception as error:  # its parsers raise almost any on damaged input
            raise DecodeError("media_decode_error", f"GIF: {str(error).split(' <')[0]}") from error

    def check(self) -> None:
        """Decode all images."""
        for _ in self.read(range(len(self.times_s))):
            pass
