"""Counter-based random numbers: a pure function of (record key, stream, position).

So augmentation and dropout of a record do not depend on the worker, the batch or the order it is read in, and there is
no generator state to save. The mixer is splitmix64's finaliser (Steele, Lea, Flood 2014, "Fast splittable
pseudorandom number generators", OOPSLA).
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["derive_keys", "field_salt", "uniform", "uniform_like"]

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_MASK_64 = 0xFFFFFFFFFFFFFFFF


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_MULTIPLIER_1)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_MULTIPLIER_2)
    return x ^ (x >> np.uint64(31))


def derive_keys(
    seed: int, epoch: int, shard: NDArray[np.int64], row: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """One 64-bit key per record and epoch, [n]; equal for equal arguments on every machine."""
    base = _mix(np.array([(seed * _GOLDEN + epoch) & _MASK_64], dtype=np.uint64))
    with np.errstate(over="ignore"):
        shard_key = _mix(base + shard.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(1))
        return _mix(shard_key + row.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(1))


def field_salt(name: str) -> int:
    """A signed 64-bit number to XOR into a record's keys, so that its fields are not augmented alike."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)


def uniform(keys: NDArray[np.uint64], stream: int, count: int) -> NDArray[np.float64]:
    """[n, count] uniform numbers in [0, 1); ``stream`` separates independent uses of the same keys."""
    start = np.uint64((stream * _MULTIPLIER_1) & _MASK_64)
    with np.errstate(over="ignore"):
        counter = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN))[None, :]
        bits = _mix(_mix(keys ^ start)[:, None] + counter)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _logical_shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _logical_shift(x, 30)) * _signed(_MULTIPLIER_1)
    x = (x ^ _logical_shift(x, 27)) * _signed(_MULTIPLIER_2)
    return x ^ _logical_shift(x, 31)


def uniform_like(keys: torch.Tensor, stream: int, count: int) -> torch.Tensor:
    """The numbers of :func:`uniform` on the keys' device: [B] int64 bit patterns -> [B, count] float32 in [0, 1)."""
    start = _signed((stream * _MULTIPLIER_1) & _MASK_64)
    steps = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * _signed(_GOLDEN)
    bits = _mix_tensor(_mix_tensor(keys ^ start)[:, None] + steps[None, :])
    return _logical_shift(bits, 40).to(torch.float32) * 2.0**-24
