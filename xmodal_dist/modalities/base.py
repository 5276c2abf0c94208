"""What a modality is: one class in one file, in the order data goes through it.

``infer -> check -> fit`` when packing and before training; ``decode`` in reader threads (numpy, uint8 where it can be);
``transform`` on the device in batch; ``encoder`` to features [B, width]; ``render`` for reports. A modality knows
nothing of datasets, Ray, other modalities or the model around it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import nn

from xmodal_dist.batch import Arrays, Tensors
from xmodal_dist.errors import DecodeError
from xmodal_dist.settings import Settings

__all__ = ["Decoded", "FieldSettings", "Fitted", "Modality", "decode_each", "media_share"]


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
        fallbacks: what took a slower decoder because the fast one refused it -> number of values.
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
    is_media: ClassVar[bool] = False
    """True if a value is an encoded file (bytes, or a path or URI to fetch); then a field has exactly one column."""

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
        """The columns with values decoded as far as no randomness is involved, for caching; by default unchanged.

        :meth:`decode` takes them in the place of ``columns`` and gives exactly the same. Values that cannot be decoded
        stay as they are.
        """
        del settings, fitted
        return list(columns)

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
    column: pa.Array, decode_one: Callable[[int, bytes], None]
) -> tuple[NDArray[np.bool_], dict[int, DecodeError]]:
    """Call ``decode_one(row, payload)`` for every value that is not null.

    Returns:
        ``present`` [n], True where it succeeded, and per failed row its error.
    """
    present = np.zeros(len(column), dtype=np.bool_)
    errors: dict[int, DecodeError] = {}
    for row, value in enumerate(column):
        if not value.is_valid:
            continue
        try:
            decode_one(row, value.as_py())
            present[row] = True
        except DecodeError as error:
            # A fresh error: the caught one's traceback would keep payload and pixels alive.
            errors[row] = DecodeError(*error.args)
    return present, errors


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
