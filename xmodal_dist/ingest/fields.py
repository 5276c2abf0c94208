"""What each column of a source is for: label, id, split, group, weight, or part of a field, asked for or inferred."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from xmodal_dist.dataset.schema import ID, LABEL, RESERVED, WEIGHT, Field, check_fields
from xmodal_dist.dataset.split import SPLIT_ALIASES
from xmodal_dist.errors import DecodeError, UsageError
from xmodal_dist.ingest.media import fetch
from xmodal_dist.ingest.source import NO_NUMBER, SPLIT, Source, as_numbers, as_text, sample, single
from xmodal_dist.modalities import Modality, available, load

__all__ = ["Roles", "cells", "choose_fields", "find_roles"]

_MAX_LABEL_CANDIDATE_VALUES = 100
_MIN_ROWS_TO_JUDGE = 20
_NUMBER_OR_NONE = (
    r"(?i)^\s*([+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|" + "|".join(map(re.escape, NO_NUMBER)) + r")\s*$"
)
_MAX_INLINE_VALUES = 64
_NUMBERS = pa.array([0.0, 1.0, 2.0])


class Roles(NamedTuple):
    """Columns that are no features; None where there is none."""

    label: str
    id: str | None
    split: str | None
    group: str | None
    weight: str | None


def find_roles(
    source: Source,
    *,
    label: str | None,
    id_column: str | None,
    split_column: str | None,
    group: str | None,
    take_split: bool,
) -> Roles:
    """Check the columns that were asked for; ``label``, ``id``, ``split`` and ``weight`` are taken by their names.

    Args:
        source: the source.
        label: column of the label, None for ``label``.
        id_column: column of the id, None for ``id`` if it is there.
        split_column: column of the split, None for ``split`` if it is there and ``take_split``.
        group: column of the group, or None.
        take_split: False if the splits are to be made.

    Raises:
        UsageError: a column is not there.
    """
    names = source.table.column_names
    if label is None and LABEL not in (*source.columns, *source.lists):
        candidates = _label_candidates(source) or source.columns or ["it has no columns"]
        raise UsageError(
            "the source has no column 'label'; name the column of the class with --label, "
            f"perhaps one of: {', '.join(candidates)}"
        )
    asked = {
        "--label": label or LABEL,
        "--id": id_column,
        "--split": split_column,
        "pack.group_column": group,
    }
    for what, column in asked.items():
        if column in source.byte_columns:
            raise UsageError(f"{what}: column {column!r} holds bytes; store it as text or numbers")
        if column is not None:
            is_list = what == "--label" and column in source.lists
            _require([*names, column] if is_list else names, column, what)
    if split_column is None and take_split and SPLIT in names:
        # One that tells some records' split and not others' is taken too, so that it is refused and not ignored.
        values = pc.utf8_lower(as_text(source.table.column(SPLIT))).unique().to_pylist()
        split_column = SPLIT if set(values) & set(SPLIT_ALIASES) else None
    weight = WEIGHT if WEIGHT in names and _is_number(as_numbers(source.table.column(WEIGHT)).type) else None
    return Roles(label or LABEL, id_column or (ID if ID in names else None), split_column, group, weight)


def choose_fields(
    source: Source, asked: Sequence[Field] | None, roles: Roles
) -> tuple[tuple[Field, ...], list[str]]:
    """The fields to pack, as asked for or inferred, and in sentences what was left out or looks wrong.

    Raises:
        UsageError: a field reads a column that is not there or is the label, no column can be a field, or a package
            that one needs is not installed.
    """
    fields, notes = _choose(source, asked, roles)
    for field in fields:
        try:
            load(field.kind).require()
        except UsageError as error:
            raise UsageError(f"field {field.name!r}: {error}. --field names the fields to pack") from error
    return fields, notes


def _choose(
    source: Source, asked: Sequence[Field] | None, roles: Roles
) -> tuple[tuple[Field, ...], list[str]]:
    if asked:
        asked = [_of_folder(source, field) for field in asked]
        check_fields(asked)
        for field in asked:
            _check_asked(source, field, roles)
        return tuple(asked), []
    if source.fields:
        return source.fields, []
    fields, notes = _infer(source, roles)
    if not fields:
        raise UsageError(
            f"no column of the source can be a field: {'; '.join([*source.notes, *notes]) or 'there is no other'}. "
            "Name the fields with --field NAME=KIND:COLUMN"
        )
    return tuple(fields), notes


def _of_folder(source: Source, field: Field) -> Field:
    """The field; of class folders, where it names no column, on the column of the files of its kind."""
    found = [own.columns for own in source.fields if own.kind == field.kind]
    if field.columns == (field.name,) and field.name not in source.columns and len(found) == 1:
        return Field(name=field.name, kind=field.kind, columns=found[0])
    return field


def cells(source: Source, modality: Modality[Any], column: str) -> pa.Array:
    """A column of small values as its modality takes it: as numbers if it takes those, else as text."""
    values = source.table.column(column)
    numbers = single(values) if source.typed else as_numbers(values)
    if modality.infer(column, sample(pa.chunked_array([numbers]))) > 0:
        return numbers
    return single(values).cast(pa.string())


def _require(names: Sequence[str], column: str, what: str) -> None:
    if column in names:
        return
    near = difflib.get_close_matches(column, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"its columns: {', '.join(names)}"
    raise UsageError(f"{what}: the source has no column {column!r}; {hint}")


def _check_asked(source: Source, field: Field, roles: Roles) -> None:
    what = f"field {field.name!r}"
    modality = load(field.kind)
    if modality.is_media and len(field.columns) != 1:
        raise UsageError(f"{what}: a field of kind {field.kind!r} reads one column, not {len(field.columns)}")
    for column in field.columns:
        _require(source.columns, column, what)
        if column == roles.label:
            raise UsageError(
                f"{what} reads {column!r}, which is the label: the model would be told the answer"
            )
        is_text = column in source.table.column_names and pa.types.is_string(
            source.table.schema.field(column).type
        )
        if modality.is_media and not is_text and column not in source.byte_columns:
            kind = source.table.schema.field(column).type
            expected = f"bytes, paths or URIs of {field.kind} files"
            raise UsageError(f"{what}: column {column!r} holds {kind}; expected {expected}")


def _infer(source: Source, roles: Roles) -> tuple[list[Field], list[str]]:
    whole: list[Field] = []
    joined: dict[str, list[str]] = {}
    notes: list[str] = []
    for column in source.columns:
        if column in roles:
            continue
        if column == SPLIT:
            why = "the splits are made" if roles.split is None else f"{roles.split!r} tells the splits"
            notes.append(f"column {column!r} left out: {why}")
            continue
        if column in RESERVED:
            notes.append(f"column {column!r} left out: the name is reserved; rename it to use it")
            continue
        kind, reason = _kind_of(source, column)
        if strays := _strays(source, column):
            notes.append(f"column {column!r} is not taken as numbers: {strays}")
        if reason:
            notes.append(f"column {column!r} left out: {reason}")
            continue
        if load(kind).infer(column, _NUMBERS) > 0:  # a kind that takes numbers: cells of one table
            joined.setdefault(kind, []).append(column)
        else:
            whole.append(Field(name=column.replace("+", "_").replace(":", "_"), kind=kind, columns=(column,)))
    fields = [
        *whole,
        *(Field(name=kind, kind=kind, columns=tuple(columns)) for kind, columns in joined.items()),
    ]
    check_fields(fields)
    for field in fields:
        for column in field.columns:
            if not load(field.kind).is_media and _determines(source, column, roles.label):
                what = "tells the label in every record: leave it out if it derives from the label"
                notes.append(f"column {column!r} {what}")
    return fields, notes


def _kind_of(source: Source, column: str) -> tuple[str, str]:
    """The kind that fits a column best, and "" or why the column is no feature."""
    is_bytes = column in source.byte_columns
    if is_bytes:
        values = source.byte_columns[column].drop_null()
    else:
        raw = source.table.column(column)
        values = sample(pa.chunked_array([raw.combine_chunks() if source.typed else as_numbers(raw)]))
    if not len(values):
        return "", "it has no values"
    shown = _inline(values)
    scores = {kind: load(kind).infer(column, shown) for kind in available()}
    best = max(scores, key=lambda kind: (scores[kind], kind))
    if scores[best] <= 0:
        return "", "its values fit no kind of field"
    return best, "" if is_bytes or load(best).is_media else _uninformative(
        source.table.column(column), values
    )


def _inline(values: pa.Array) -> pa.Array:
    """What ``data:`` URIs hold, where most of the values are such; else the values."""
    if not pa.types.is_string(values.type):
        return values
    uris = values.filter(pc.starts_with(values, "data:")).slice(0, _MAX_INLINE_VALUES).to_pylist()
    if len(uris) <= min(len(values), _MAX_INLINE_VALUES) / 2:
        return values
    payloads = []
    for uri in uris:
        with contextlib.suppress(DecodeError):  # rejected when it is packed
            payloads.append(fetch("", uri))
    return pa.array(payloads, pa.binary()) if payloads else values


def _strays(source: Source, column: str) -> str:
    """The few values of a column of a CSV that keep it from being numbers, in words; "" if there are none or many."""
    if source.typed or not pa.types.is_string(source.table.schema.field(column).type):
        return ""
    texts = source.table.column(column).drop_null()
    strange = texts.filter(pc.invert(pc.match_substring_regex(texts, _NUMBER_OR_NONE)))
    if not 0 < len(strange) <= len(texts) / 10:
        return ""
    return f"{len(strange)} of its {len(texts)} values are none, such as {strange[0].as_py()[:40]!r}"


def _uninformative(column: pa.ChunkedArray, values: pa.Array) -> str:
    distinct = pc.count_distinct(column, mode="all").as_py()
    if distinct <= 1:
        return "it has the same value in every record"
    if len(values) < _MIN_ROWS_TO_JUDGE or pc.count_distinct(values).as_py() < 0.95 * len(values):
        return ""
    if pa.types.is_integer(values.type):
        return "its whole numbers are all different, as of an identifier"
    if pa.types.is_string(values.type) and pc.mean(pc.match_substring_regex(values, r"\s")).as_py() < 0.05:
        if pc.mean(pc.match_substring_regex(values, r"\.[A-Za-z][A-Za-z0-9]{1,4}$")).as_py() > 0.95:
            return "its values look like names of files of no known kind"
        return "its words are all different, as of an identifier"
    return ""


def _determines(source: Source, column: str, label: str) -> bool:
    """True if every value of a category column comes with one label only, and values repeat."""
    if column in source.byte_columns or label not in source.table.column_names:
        return False
    pairs = pa.table(
        {"value": as_text(source.table.column(column)), "label": as_text(source.table.column(label))}
    )
    pairs = pairs.drop_null()
    values = pc.count_distinct(pairs["value"]).as_py()
    if not 1 < values <= len(pairs) / 5:
        return False
    return int(pairs.group_by(["value", "label"]).aggregate([]).num_rows) == int(values)


def _label_candidates(source: Source) -> list[str]:
    def count(column: str) -> int:
        return int(pc.count_distinct(source.table.column(column)).as_py())

    most = min(_MAX_LABEL_CANDIDATE_VALUES, max(source.table.num_rows // 2, 2))
    return [column for column in source.table.column_names if 2 <= count(column) <= most]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
