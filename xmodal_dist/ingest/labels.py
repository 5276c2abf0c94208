"""The labels of a source: a class a record, or a list of classes, by what the label column holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.ingest.source import Source, as_text
from xmodal_dist.task import MULTICLASS, MULTILABEL, Label, Task

__all__ = ["Labels", "read_labels"]


class Labels(NamedTuple):
    """The labels of all records.

    Attributes:
        task: what they are.
        values: [n] by row of the source's table; None where there is none.
        faults: row -> what is wrong with a list that is no label.
    """

    task: Task
    values: Sequence[Label | None]
    faults: dict[int, str]


def read_labels(source: Source, column: str, separator: str | None) -> Labels:
    """The labels of a column: lists, text that ``separator`` makes lists of, or single classes.

    Args:
        source: the source.
        column: the label column; it is there.
        separator: between the classes of a text; one that stands alone is the empty list. None: a text is a class.

    Raises:
        DataError: some values are lists and others not.
        UsageError: there are lists already, and a separator is given.
    """
    if column in source.lists:
        if separator is not None:
            raise UsageError(
                f"pack.label_separator={separator!r}: the column {column!r} holds lists already; leave it out"
            )
        return _from_lists(source, column)
    texts: list[str | None] = as_text(source.table.column(column)).to_pylist()
    if separator is None:
        return Labels(MULTICLASS, texts, {})
    return Labels(MULTILABEL, [None if t is None else _label(t.split(separator)) for t in texts], {})


def _from_lists(source: Source, column: str) -> Labels:
    values: list[Label | None] = []
    faults: dict[int, str] = {}
    raw = source.lists[column]()
    for row, value in enumerate(raw):
        if value is not None and not isinstance(value, list):
            other = next(i for i, v in enumerate(raw) if isinstance(v, list))
            raise DataError(
                f"{source.place(row)}: the label {column!r} is {value!r}, but {source.place(other)} has a list of "
                f"classes; write a list in every row, here [{value!r}], and [] for no class"
            )
        names = [_name(element) for element in value or ()]
        if None in names:
            strange = next(e for e, name in zip(value or (), names, strict=True) if name is None)
            faults[row] = f"the list of classes holds {strange!r}; expected text or whole numbers"
        values.append(None if value is None else _label([name for name in names if name is not None]))
    return Labels(MULTILABEL, values, faults)


def _label(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({name.strip() for name in names} - {""}))


def _name(element: Any) -> str | None:
    """The class that an element of a list names; None if it names none."""
    if isinstance(element, bool):
        return str(element).lower()
    if isinstance(element, float) and math.isfinite(element) and element.is_integer():
        return str(int(element))
    if isinstance(element, int) or (isinstance(element, str) and element.strip()):
        return str(element)
    return None
