"""Tables: numeric columns standardised, categorical ones as ids, what is missing marked."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from xmodal_dist.batch import Arrays, Tensors
from xmodal_dist.encoders import EncoderSettings, build
from xmodal_dist.encoders.columns import TABLE_ENCODERS
from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities.base import Decoded, FieldSettings, Fitted, Modality
from xmodal_dist.randomness import uniform_like

__all__ = ["MODALITY", "TabularModality", "TabularSettings"]

_STREAM_DROPOUT = 401
_MISSING_ID, _UNKNOWN_ID = 0, 1
_BLANK_PLACE, _NOWHERE = 1, -1
_NO_ROWS = np.empty(0, dtype=np.int64)
_MAX_DEVIATIONS = 10.0
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_NOT_A_NUMBER = r"(?i)^[+-]?(nan|inf|infinity)$"
_MICROSECONDS_PER_DAY = 86_400_000_000


class TabularSettings(EncoderSettings, FieldSettings):
    """Settings of a tabular field."""

    architectures = TABLE_ENCODERS

    kind: Literal["tabular"] = "tabular"
    encoder: str = "mlp"
    max_categories: int = Field(1000, ge=1, le=1_000_000)
    """The most frequent values of a categorical column that get an id of their own."""
    min_count: int = Field(2, ge=1)
    """Values seen less often in the sample count as unknown, so that training meets unknown values too."""
    value_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the values that training hides as missing, at random."""


class TabularModality(Modality[TabularSettings]):
    """Numbers, dates, booleans and short strings; arrays and tensors ``numeric``, ``missing`` and ``categorical``."""

    kind = "tabular"
    settings = TabularSettings
    device_settings = frozenset({"value_dropout"})

    def infer(self, name: str, sample: pa.Array) -> float:
        """0.9 for numbers, dates and booleans; 0.7 for short strings that repeat."""
        kind = sample.type
        if sample.null_count == len(sample):
            return 0.1
        if _is_numeric(kind) or pa.types.is_boolean(kind):
            return 0.9
        texts = _texts(sample)
        if texts is None or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return 0.0
        count = len(texts) - texts.null_count
        few = pc.count_distinct(texts).as_py() <= min(count / 2, max(20, count / 20))
        return 0.7 if few and pc.max(pc.utf8_length(texts)).as_py() <= 40 else 0.1

    def check(self, values: Sequence[Any]) -> None:
        """Refuse nested values and bytes; what a column's numbers must be is known only when it is fitted."""
        for value in values:
            if isinstance(value, (list, tuple, dict, bytes)):
                message = f"expected a number, boolean or string, found {type(value).__name__}"
                raise DecodeError("column_type", message)

    def fit(self, settings: TabularSettings, table: pa.Table) -> Fitted:
        """``columns``: per column its ``name`` and ``mean`` and ``std``, or its ``categories`` (most frequent first).

        Numbers and dates (in days since 1970) are numeric, strings and booleans categorical.
        """
        columns = []
        for name, chunks in zip(table.column_names, table.columns, strict=True):
            column = chunks.combine_chunks()
            described = (
                _fit_numeric(column) if _is_numeric(column.type) else _fit_categories(column, settings)
            )
            columns.append({"name": name, **described})
        return Fitted({"columns": columns})

    def decode(
        self,
        settings: TabularSettings,
        fitted: Fitted,
        columns: Sequence[pa.Array],
        keys: NDArray[np.uint64] | None,
    ) -> Decoded:
        """A record is missing if all its values are.

        ``numeric`` [n, Cn] float32, in deviations from the mean, within 10, 0 where missing; ``missing`` [n, Cn] bool;
        ``categorical`` [n, Cc] int32, 0 = missing, 1 = unknown. NaN, infinities and blank strings count as missing.
        """
        count, specs = len(columns[0]), fitted.values["columns"]
        num_numeric = sum("mean" in spec for spec in specs)
        numeric = np.empty((count, num_numeric))
        ids = np.empty((count, len(specs) - num_numeric), dtype=np.int32)
        errors: dict[int, DecodeError] = {}
        numeric_at, ids_at = iter(numeric.T), iter(ids.T)
        for spec, column in zip(specs, columns, strict=True):
            if "mean" in spec:
                numbers, wrong = _numbers(column)
                np.divide(numbers - spec["mean"], spec["std"], out=next(numeric_at))
            else:
                next(ids_at)[:], wrong = _ids(column, spec["categories"])
            for row in wrong.tolist():
                found = f"{'no number' if 'mean' in spec else 'no category'} in {column.type}"
                errors.setdefault(row, DecodeError("column_type", f"column {spec['name']!r}: {found}"))
        missing = np.isnan(numeric)
        numeric[missing] = 0.0
        present = np.logical_or.reduce([*(~missing).T, *(ids != _MISSING_ID).T])
        present[list(errors)] = False
        values = numeric.clip(-_MAX_DEVIATIONS, _MAX_DEVIATIONS).astype(np.float32)
        arrays = {"numeric": values, "missing": missing, "categorical": ids}
        if not present.all():
            for array in arrays.values():
                array[~present] = 0
        return Decoded(arrays, present, errors)

    def measures(
        self, settings: TabularSettings, fitted: Fitted, arrays: Arrays
    ) -> dict[str, NDArray[np.float32]]:
        """``missing_share`` and ``unknown_share`` of a record's values, and each column's value as ``column:NAME``.

        Numbers are as given, but within 10 deviations of the mean; a category is its id (1 = unknown, then by
        frequency); NaN where missing.
        """
        numeric, missing, ids = arrays["numeric"], arrays["missing"], arrays["categorical"]
        columns = fitted.values["columns"]
        count = (missing.sum(axis=1) + (ids == _MISSING_ID).sum(axis=1)) / len(columns)
        figures = {"missing_share": count, "unknown_share": (ids == _UNKNOWN_ID).sum(axis=1) / len(columns)}
        numeric_at, ids_at = iter(range(numeric.shape[1])), iter(ids.T)
        for spec in columns:
            if "mean" in spec:
                place = next(numeric_at)
                with np.errstate(over="ignore"):
                    value = numeric[:, place].astype(np.float64) * spec["std"] + spec["mean"]
                value = value.clip(-_LARGEST_FLOAT, _LARGEST_FLOAT)
                figures[f"column:{spec['name']}"] = np.where(missing[:, place], np.nan, value)
            else:
                own = next(ids_at)
                figures[f"column:{spec['name']}"] = np.where(own == _MISSING_ID, np.nan, own)
        return {name: values.astype(np.float32) for name, values in figures.items()}

    def transform(
        self, settings: TabularSettings, fitted: Fitted, tensors: Tensors, keys: Any | None
    ) -> Tensors:
        """The same tensors, ids as int64; with keys, hidden values become missing, and ``keys`` are handed on."""
        numeric, missing, ids = tensors["numeric"], tensors["missing"], tensors["categorical"].long()
        if keys is not None and settings.value_dropout > 0:
            count = missing.shape[1]
            hidden = uniform_like(keys, _STREAM_DROPOUT, count + ids.shape[1]) < settings.value_dropout
            missing = missing | hidden[:, :count]
            numeric = numeric.masked_fill(missing, 0.0)
            ids = ids.masked_fill(hidden[:, count:], _MISSING_ID)
        found = {"numeric": numeric, "missing": missing, "categorical": ids}
        return found if keys is None else {**found, "keys": keys}

    def encoder(self, settings: TabularSettings, fitted: Fitted, width: int) -> nn.Module:
        """As the settings name it; by default a two-layer perceptron on numbers, missing flags and embeddings."""
        return build(settings, fitted.values, fitted.files, width)

    def render(self, values: Sequence[Any]) -> str:
        """The values in column order, escaped; a dash where one is missing."""
        return " · ".join("–" if value is None else html.escape(str(value)) for value in values)


def _is_numeric(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_date(kind)
        or types.is_timestamp(kind)
    )


def _trimmed(column: pa.Array) -> pa.Array | None:
    """The column as strings without white space around; None if its type has no such form."""
    try:
        return pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _texts(column: pa.Array) -> pa.Array | None:
    """As :func:`_trimmed`, null where blank."""
    texts = _trimmed(column)
    return None if texts is None else pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)


def _valid_rows(column: pa.Array) -> NDArray[np.int64]:
    return np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))


def _numbers(column: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Numbers [n], NaN where there is none, and the rows whose value is no number."""
    kind, wrong = column.type, _NO_ROWS
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        microseconds = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        column = pc.divide(microseconds.cast(pa.float64(), safe=False), float(_MICROSECONDS_PER_DAY))
    elif not _is_numeric(kind) and not pa.types.is_boolean(kind):
        texts = _texts(column)
        if texts is None:
            return np.full(len(column), np.nan), _valid_rows(column)
        is_number = pc.match_substring_regex(texts, _NUMBER)
        is_known = pc.or_(is_number, pc.match_substring_regex(texts, _NOT_A_NUMBER))
        wrong = np.flatnonzero(pc.invert(is_known).fill_null(False).to_numpy(zero_copy_only=False))
        digits = pc.if_else(is_number, texts, pa.scalar(None, pa.large_string()))
        column = pc.replace_substring_regex(digits, r"^\+", "")
    if not pa.types.is_floating(column.type) and not pa.types.is_integer(column.type):
        column = column.cast(pa.float64(), safe=False)
    numbers = np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers, wrong


def _ids(column: pa.Array, categories: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Ids [n] and the rows whose value is no category."""
    texts = _trimmed(column)
    if texts is None:
        return np.zeros(len(column), dtype=np.int32), _valid_rows(column)
    # What is missing is found at the first two places, so that the first category is found at its id.
    known = pa.array([None, "", *categories], texts.type)
    places = pc.index_in(texts, value_set=known).fill_null(_NOWHERE).to_numpy()
    ids = np.where(places == _NOWHERE, np.int32(_UNKNOWN_ID), places)
    ids[places == _BLANK_PLACE] = _MISSING_ID
    return ids, _NO_ROWS


def _fit_numeric(column: pa.Array) -> dict[str, float]:
    numbers, _ = _numbers(column)
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return {"mean": 0.0, "std": 1.0}
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(finite.mean()), float(finite.std())
    usable = np.isfinite(mean) and np.isfinite(std) and std > 1e-12 * abs(mean)
    return {"mean": mean if np.isfinite(mean) else 0.0, "std": std if usable else 1.0}


def _fit_categories(column: pa.Array, settings: TabularSettings) -> dict[str, list[str]]:
    texts = _texts(column)
    if texts is None:
        return {"categories": []}
    counts = [(-entry["counts"], entry["values"]) for entry in pc.value_counts(texts.drop_null()).to_pylist()]
    known = sorted((count, value) for count, value in counts if -count >= settings.min_count)
    return {"categories": [value for _, value in known[: settings.max_categories]]}


MODALITY = TabularModality()
