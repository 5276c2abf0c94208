"""What each field of a record contributed to its prediction: exact Shapley values (Shapley 1953).

The fields are the players, and a coalition's value is the probability of the class that all fields together predict,
when only the coalition is shown. Probabilities and not their logarithms, because a contribution is then a number of
percentage points that anybody can read, and because logarithms would be ruled by coalitions that find the class
impossible: there, a difference between 1e-9 and 1e-6 counts as much as one between 0.001 and 1.

With M fields there are 2^M coalitions; number ``n`` of them shows field ``m`` if bit ``m`` of ``n`` is set. So 0 is no
field at all (the model's answer to an empty record) and the last one is all of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from xmodal_dist.errors import UsageError

__all__ = ["MAX_FIELDS", "coalition_masks", "coalition_values", "shapley_values"]

MAX_FIELDS = 10
"""More would need thousands of predictions a record."""

_NAME = "coalition:"


def coalition_masks(num_fields: int) -> dict[str, list[bool]]:
    """Every coalition as a named mask in field order, for :meth:`xmodal_dist.bundle.Bundle.predict`.

    Raises:
        UsageError: more than :data:`MAX_FIELDS` fields.
    """
    if num_fields > MAX_FIELDS:
        raise UsageError(
            f"the model has {num_fields} fields; contributions take 2^fields predictions a record and are computed "
            f"for at most {MAX_FIELDS} fields"
        )
    return {f"{_NAME}{n}": [bool(n >> m & 1) for m in range(num_fields)] for n in range(1 << num_fields)}


def coalition_values(probabilities: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Each coalition's probability of the class predicted from all fields, [B, 2^M] float32.

    Args:
        probabilities: [B, C] of a prediction with :func:`coalition_masks`; of equal ones the first counts.
    """
    whole = probabilities[""]
    places = torch.arange(whole.shape[1], device=whole.device).expand_as(whole)
    best = whole == whole.amax(dim=-1, keepdim=True)
    label = places.masked_fill(~best, whole.shape[1] - 1).amin(dim=-1, keepdim=True)
    shown = [name for name in probabilities if name.startswith(_NAME)]
    shown.sort(key=lambda name: int(name.removeprefix(_NAME)))
    return torch.cat([probabilities[name].gather(1, label) for name in shown], dim=1)


def shapley_values(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Each player's mean gain over all orders in which the players may join, [n, M].

    A row's values add up to the value of all players less that of none (efficiency); players that change nothing, as
    absent fields, get exactly 0; players that change the same get the same. Rows do not depend on each other.

    Args:
        values: [n, 2^M], of every coalition in order.

    Raises:
        ValueError: the number of columns is no power of two.
    """
    num_fields = values.shape[1].bit_length() - 1
    if values.shape[1] != 1 << num_fields:
        raise ValueError(f"{values.shape[1]} coalitions; expected a power of two")
    values = values.astype(np.float64)
    found = np.zeros((len(values), num_fields))
    for player in range(num_fields):
        without, weights = _others(num_fields, player)
        gains = values[:, without | 1 << player] - values[:, without]
        # In rows of their own, so that a row is summed in the same order whatever the number of rows.
        found[:, player] = np.ascontiguousarray(gains * weights).sum(axis=1)
    return found


@functools.cache
def _others(num_fields: int, player: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The coalitions without a player, and the share of all orders in which exactly they come before it."""
    without = np.array([n for n in range(1 << num_fields) if not n >> player & 1], dtype=np.int64)
    sizes = [int(n).bit_count() for n in without]
    weights = [1 / (num_fields * math.comb(num_fields - 1, size)) for size in sizes]
    return without, np.array(weights)
