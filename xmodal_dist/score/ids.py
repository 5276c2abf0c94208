"""An order-independent hash of ids: equal for equal multisets, so loss and doubling show without a join."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = ["IdHash"]

_MODULUS = 1 << 128


class IdHash:
    """Sum modulo 2^128 of a 128-bit BLAKE2b of every id (AdHash, Bellare and Micciancio 1997)."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, ids: Iterable[str]) -> None:
        """Take in some ids; repeated ones count again."""
        blake2b, from_bytes = hashlib.blake2b, int.from_bytes
        total = sum(from_bytes(blake2b(name.encode(), digest_size=16).digest(), "little") for name in ids)
        self._sum = (self._sum + total) % _MODULUS

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._sum:032x}"
