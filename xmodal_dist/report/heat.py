"""Heat maps drawn over what a model sees, and words in colours, as fragments of a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Protocol

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Seen", "overlay", "words"]

_SIDE_PX, _WIDE_PX, _FRAME_GAP_PX = 144, 300, 4
_MAX_FRAMES = 6
_MAX_WORDS = 400
_STRENGTH = 0.85
_FADED = 0.55


class Seen(Protocol):
    """A value as the model sees it: see :class:`xmodal_dist.explain.views.View`."""

    @property
    def name(self) -> str:
        """What it is, for example ``pixels``."""

    @property
    def frames(self) -> NDArray[np.uint8]:
        """[T, H, W, 3], or [T, H, W] of one channel."""

    @property
    def upward(self) -> bool:
        """Whether the first row belongs at the bottom."""


def overlay(seen: Seen, heat: Sequence[Sequence[Sequence[float]]]) -> Markup:
    """The value with its heat map as one picture; of a clip at most 6 frames side by side.

    Args:
        seen: frames [T, H, W] or [T, H, W, 3].
        heat: [t, h, w] in [0, 1], stretched to the frames and over their number.
    """
    maps = np.asarray(heat, dtype=np.float32)
    count = len(seen.frames)
    places = np.unique(np.linspace(0, count - 1, min(count, _MAX_FRAMES)).round().astype(int))
    pictures = [_blended(seen, int(at), maps[int(at * len(maps) / count)]) for at in places]
    gap = np.full((pictures[0].shape[0], _FRAME_GAP_PX, 3), 255, dtype=np.uint8)
    joined = [part for picture in pictures for part in (gap, picture)][1:]
    buffer = io.BytesIO()
    image = Image.fromarray(np.concatenate(joined, axis=1))
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    words = f"heat map over {seen.name}"
    return Markup(
        f'<img class="heat" alt="{escape(words)}" width="{image.width}" height="{image.height}" '
        f'src="data:image/png;base64,{data}">'
    )


def _blended(seen: Seen, place: int, heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One frame at display size, faded to grey, with the heat in colour: the hotter the more of it."""
    picture = Image.fromarray(seen.frames[place]).convert("RGB")
    wide = picture.width > 1.5 * picture.height
    factor = (_WIDE_PX if wide else _SIDE_PX) / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(48, round(picture.height * factor)))
    grey = np.asarray(picture.resize(size, Image.Resampling.BICUBIC).convert("L"), dtype=np.float32) / 255
    shown = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colour = matplotlib.colormaps["YlOrRd"](0.15 + 0.8 * shown)[..., :3]
    opacity = (_STRENGTH * shown**0.75)[..., None]
    base = (1 - _FADED + _FADED * grey)[..., None] if seen.upward else grey[..., None]
    blended = (1 - opacity) * base + opacity * colour
    pixels: NDArray[np.uint8] = (255 * blended.clip(0, 1)).round().astype(np.uint8)
    return pixels[::-1] if seen.upward else pixels


def words(attributed: Sequence[tuple[str, float | None]]) -> Markup:
    """A text whose words are blue as they speak for the class and red as they speak against it.

    Args:
        attributed: words and attributions in order; None for a word that the model did not see, an empty word for the
            border of two columns.
    """
    strongest = max((abs(value) for _, value in attributed if value is not None), default=0.0) or 1.0
    parts = [_word(word, value, strongest) for word, value in attributed[:_MAX_WORDS]]
    more = len(attributed) - _MAX_WORDS
    if more > 0:
        parts.append(Markup(f'<span class="unseen">and {more:,} more words</span>'))
    return Markup(" ").join(parts)


def _word(word: str, value: float | None, strongest: float) -> Markup:
    if not word:
        return Markup('<span class="border">|</span>')
    if value is None:
        return Markup('<span class="unseen" title="not seen by the model">{}</span>').format(word)
    share = abs(value) / strongest
    colour = "36, 87, 197" if value > 0 else "208, 84, 74"
    title = f"{100 * value:+.1f} points"
    return Markup('<span class="word" style="background: rgba({}, {})" title="{}">{}</span>').format(
        colour, f"{0.6 * share:.2f}", title, word
    )
