"""Mixup (Zhang et al. 2018, arXiv:1710.09412) of the encoders' features: any modality can be mixed there, texts too.

Rows 2i and 2i + 1 are partners. A lane has an even number of rows in each step, so a record's partner is its neighbour
in the lane: the same on any number of workers, and another one in each epoch. How much is mixed follows from the
record's key. Mixing hidden features instead of inputs is Verma et al. 2019 (arXiv:1806.05236).

A field is mixed in rows where both partners have it; elsewhere the row keeps what it has, and lacks what it lacks. Its
target is mixed as much as its features are: see :class:`Shares`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from xmodal_dist.randomness import uniform_like

__all__ = ["Shares", "draw_shares", "mix_features", "partners"]

_STREAM = 0x_C1_03
_TRIES = 16


class Shares(NamedTuple):
    """How much of a row's target is its own label; the rest is its partner's.

    Attributes:
        fused: [B] in [0.5, 1] for the fused logits: the mean over the fields that are shown.
        fields: [B, M] in [0.5, 1] for each field's own logits.
    """

    fused: torch.Tensor
    fields: torch.Tensor


def partners(values: torch.Tensor) -> torch.Tensor:
    """The partner's values in each row, of [B, ...] with an even B."""
    return values.reshape(-1, 2, *values.shape[1:]).flip(1).view_as(values)


def draw_shares(keys: torch.Tensor, usable: torch.Tensor, alpha: float) -> torch.Tensor:
    """Each row's own share [B], max(s, 1 - s) of a draw s from Beta(alpha, alpha), by Johnk's method (1964).

    Args:
        keys: [B] int64 record keys.
        usable: [B] bool; where a row or its partner is not, nothing is mixed and the share is 1.
        alpha: in (0, 1].
    """
    draws = uniform_like(keys, _STREAM, 2 * _TRIES).clamp(min=2.0**-25)
    x, y = (draws.log() / alpha).chunk(2, dim=1)
    first = (torch.logaddexp(x, y) <= 0).to(torch.int64).argmax(dim=1, keepdim=True)
    share = (x - y).gather(1, first)[:, 0].abs().sigmoid()
    return torch.where(usable & partners(usable), share, 1.0)


def mix_features(
    features: torch.Tensor, present: torch.Tensor, shown: torch.Tensor, share: torch.Tensor
) -> tuple[torch.Tensor, Shares]:
    """Features [B, M, D] mixed with the partners', and the shares of the targets.

    Args:
        features: [B, M, D].
        present: [B, M] bool.
        shown: [B, M] bool, the fields that the fusion will see.
        share: [B] of :func:`draw_shares`.
    """
    fields = torch.where(present & partners(present), share[:, None], 1.0)
    own = fields.unsqueeze(-1).to(features.dtype)
    mixed = own * features + (1 - own) * partners(features)
    num_shown = shown.sum(dim=1)
    fused = torch.where(num_shown > 0, (fields * shown).sum(dim=1) / num_shown.clamp(min=1), 1.0)
    return mixed, Shares(fused, fields)
