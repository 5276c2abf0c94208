"""Ids of records, and an order-independent hash of them: loss and doubling show without a join."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from xmodal_dist.pipeline.rows import plain

__all__ = ["IdHash", "id_list", "id_texts", "row_ids"]

_MODULUS = 1 << 128


def row_ids(path: str, rows: Iterable[int]) -> list[str]:
    """What stands for the ids of rows of an input file that has none."""
    name = posixpath.basename(path)
    return [f"{name}#{row}" for row in rows]


def id_texts(column: pa.ChunkedArray) -> pa.Array:
    """A column of ids or names as strings, null where there is none."""
    return plain(column).cast(pa.string()).combine_chunks()


def id_list(column: pa.ChunkedArray) -> list[str]:
    """Ids as they are hashed: strings, "" where there is none."""
    texts: list[str] = pc.fill_null(id_texts(column), "").to_pylist()
    return texts


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
