"""What a modality is: one class in one file, in the order data goes through it.

``infer -> check -> fit`` when packing and before training; ``decode`` in reader threads (numpy, uint8 where it can be);
``transform`` on the device in batch; ``encoder`` to features [B, width]; ``render`` for reports. A modality knows
nothing of datasets, Ray, other modalities or the model around it. ``unpack`` does the part of ``decode`` that no
randomness touches, for a cache of decoded data. ``measures`` says what decoded records look like, to compare data with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import nn

from xmodal_dist.batch import Arrays, Tensors
from xmodal_dist.errors import DecodeError
from xmodal_dist.settings import Settings

__all__ = ["Decoded", "FieldSettings", "Fitted", "Modality", "decode_each", "media_share", "replace_each"]


class FieldSettings(Settings):
    """Base of the settings of one field; every modality narrows ``kind`` to a literal of its own."""

    kind: str


@dataclass(frozen=True)
class Fitted:
    """What a field learned from the train split; stored in the bundle, never re-fitted.

    Attributes:
        values: JSON-able values (sizes, means, vocabularies).
        files: whole files by name, for example ``tokenizer.json`` -> text.
    """

    values: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """One field of n records.

    Attributes:
        arrays: each with leading dimension n; rows that are missing or failed hold zeros.
        present: [n] bool; False where missing or failed.
        errors: row -> what was wrong. A record with an error is rejected, never treated as missing.
        fallbacks: how many values the fast decoder refused and a slower one took, by what happened, for example
            ``{"jpeg: simplejpeg -> Pillow": 3}``.
    """

    arrays: Arrays
    present: NDArray[np.bool_]
    errors: dict[int, DecodeError] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)


S = TypeVar("S", bound=FieldSettings)


class Modality(ABC, Generic[S]):
    """One kind of field. Instances hold no state: settings and what was fitted come as arguments."""

    kind: ClassVar[str]
    """Name in manifests and settings."""
    settings: type[S]
    """Settings class of a field of this kind; all its values have defaults."""
    suffixes: ClassVar[frozenset[str]] = frozenset()
    """Lower-case file name endings (``.png``) whose files are values of this kind; empty if values are not files."""
    declared_suffixes: ClassVar[frozenset[str]] = frozenset()
    """Endings of another kind's files that are values of this one where a field is declared to be of it."""
    device_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings of augmentation that act on the device alone: nothing fitted, unpacked or decoded depends on them."""
    is_media: ClassVar[bool] = False
    """True if a value is an encoded file (bytes, or a path or URI to fetch); then a field has exactly one column."""

    def require(self) -> None:
        """Raise :class:`UsageError` if a package that this kind needs is not installed; by default none is needed."""
        return

    @abstractmethod
    def infer(self, name: str, sample: pa.Array) -> float:
        """How well a column fits this kind: 0 (not at all) to 1; the highest wins. ``sample``: <= 1,000 values."""

    @abstractmethod
    def check(self, values: Sequence[Any]) -> None:
        """Raise :class:`DecodeError` if a record's value cannot be used; ``values``: one per column, media as bytes."""

    @abstractmethod
    def fit(self, settings: S, table: pa.Table) -> Fitted:
        """Learn from a sample of the train split; ``table`` has this field's columns only, media as bytes."""

    @abstractmethod
    def decode(
        self, settings: S, fitted: Fitted, columns: Sequence[pa.Array], keys: NDArray[np.uint64] | None
    ) -> Decoded:
        """Decode n records; thread-safe.

        Args:
            settings: settings of the field.
            fitted: what :meth:`fit` returned.
            columns: the field's columns in order, each of length n; media as bytes.
            keys: [n] per-record random keys in training (random crops), None for deterministic decoding.
        """

    def unpack(self, settings: S, fitted: Fitted, columns: Sequence[pa.Array]) -> list[pa.Array]:
        """The columns with values decoded as far as no randomness is involved; by default unchanged.

        :meth:`decode` takes them in place of ``columns`` and returns the same, to the bit, errors included: what cannot
        be decoded stays as it is, nulls stay null. What stands in the values is private to the modality, its version
        and these settings (without ``device_settings``, and the encoder but for what was fitted for it); :meth:`check`
        refuses it.
        """
        del settings, fitted
        return list(columns)

    def augments(self, settings: S) -> bool:
        """Whether training may see a value otherwise than evaluation does; by default it is said to.

        Where not, :meth:`decode` and :meth:`transform` make the same of it with keys as without.
        """
        del settings
        return True

    def measures(self, settings: S, fitted: Fitted, arrays: Arrays) -> dict[str, NDArray[np.float32]]:
        """What n decoded records look like, in a few figures each that cost little beside decoding; by default none.

        Args:
            settings: settings of the field.
            fitted: what :meth:`fit` returned.
            arrays: those of :meth:`decode` without keys; what comes of rows of missing values is of no use.

        Returns:
            [n] by name, finite, or NaN where a record has no such figure. A pure function of each row; the names
            depend on ``settings`` and ``fitted`` alone.
        """
        del settings, fitted, arrays
        return {}

    def words(self, settings: S, fitted: Fitted, values: Sequence[Any]) -> list[tuple[str, int]]:
        """The words of one record's value in the order in which the encoder reads their tokens; by default none.

        Returns:
            Each word as written, and how many ids of :meth:`decode` are its own: 0 if it was cut off. An empty string
            stands for ids that belong to no word, as the border of two columns.
        """
        del settings, fitted, values
        return []

    @abstractmethod
    def transform(self, settings: S, fitted: Fitted, tensors: Tensors, keys: Any | None) -> Tensors:
        """Normalise and, with ``keys`` ([B] int64 tensor), augment a batch on its device; deterministic without."""

    @abstractmethod
    def encoder(self, settings: S, fitted: Fitted, width: int) -> nn.Module:
        """A module from transformed tensors (called as ``encoder(tensors)``) to features [B, ``width``]."""

    @abstractmethod
    def render(self, values: Sequence[Any]) -> str:
        """One record's value as a self-contained HTML fragment for reports."""

    def shrink(self, payload: bytes, max_side_px: int | None, sample_rate_hz: int | None) -> bytes:
        """Re-encode a media value smaller at pack time where the arguments ask for it; by default unchanged."""
        del max_side_px, sample_rate_hz
        return payload


def decode_each(
    column: pa.Array, decode_one: Callable[[int, memoryview], None]
) -> tuple[NDArray[np.bool_], dict[int, DecodeError]]:
    """Call ``decode_one(row, payload)`` for every value that is not null; payloads are views, nothing is copied.

    Returns:
        ``present`` [n], True where it succeeded, and per failed row its error.
    """
    present = np.zeros(len(column), dtype=np.bool_)
    errors: dict[int, DecodeError] = {}
    for row, payload in _payloads(column):
        try:
            decode_one(row, payload)
            present[row] = True
        except DecodeError as error:
            # A fresh error: the caught one's traceback would keep payload and pixels alive.
            errors[row] = DecodeError(*error.args)
    return present, errors


def replace_each(
    column: pa.Array, replace: Callable[[memoryview], Sequence[memoryview | bytes] | None]
) -> pa.Array:
    """The column as ``large_binary``, each value the parts that ``replace(payload)`` returns, joined.

    Where it returns None or raises :class:`DecodeError` the value stays as it is, and so do nulls.
    """
    stream = pa.BufferOutputStream()
    lengths = np.zeros(len(column) + 1, dtype=np.int64)
    for row, payload in _payloads(column):
        try:
            parts = replace(payload)
        except DecodeError:
            parts = None
        for part in (payload,) if parts is None else parts:
            lengths[row + 1] += stream.write(part)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    buffers = [np.packbits(valid, bitorder="little"), lengths.cumsum()]
    return pa.Array.from_buffers(
        pa.large_binary(), len(column), [*map(pa.py_buffer, buffers), stream.getvalue()]
    )


def _payloads(column: pa.Array) -> Iterator[tuple[int, memoryview]]:
    """Row and bytes of every value that is not null, as views of the column's buffer."""
    if not pa.types.is_binary(column.type) and not pa.types.is_large_binary(column.type):
        column = column.cast(pa.large_binary())
    if len(column) == 0:
        return
    _, offset_buffer, data_buffer = column.buffers()
    kind = np.dtype(np.int32 if pa.types.is_binary(column.type) else np.int64)
    start = column.offset * kind.itemsize
    offsets = np.frombuffer(offset_buffer, kind, len(column) + 1, start).tolist()
    # Decoders want unsigned bytes; a buffer of pyarrow shows itself as signed ones.
    data = memoryview(b"" if data_buffer is None else data_buffer).cast("B")
    valid = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
    for row in range(len(column)):
        if valid is None or valid[row]:
            yield row, data[offsets[row] : offsets[row + 1]]


def media_share(sample: pa.Array, suffixes: frozenset[str], recognises: Callable[[bytes], bool]) -> float:
    """Share of the non-null values that are bytes ``recognises`` accepts, or paths or URIs ending in ``suffixes``."""
    values = [value for value in sample.to_pylist() if value is not None]
    hits = 0
    for value in values:
        if isinstance(value, bytes):
            hits += recognises(value)
        elif isinstance(value, str):
            hits += value.split("?", 1)[0].lower().endswith(tuple(suffixes))
    return hits / max(1, len(values))
