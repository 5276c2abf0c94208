"""Networks from a field's transformed tensors to features [B, width], by name; they know nothing of data or models.

They are built so that training on N workers equals training on one: a row's features depend on no other row and not on
the amount of padding (GroupNorm and LayerNorm, masked pooling), nothing draws from a random generator in ``forward``,
and no parameter has a gradient that is zero but for rounding (no bias before a norm, no attention key bias), which
Adam would turn into steps of full size.
"""

from __future__ import annotations

from xmodal_dist.encoders.base import (
    SEEN,
    Architecture,
    EncoderSettings,
    Evidence,
    Prepared,
    Pretrained,
    Request,
    build,
)

__all__ = [
    "SEEN",
    "Architecture",
    "EncoderSettings",
    "Evidence",
    "Prepared",
    "Pretrained",
    "Request",
    "build",
]
