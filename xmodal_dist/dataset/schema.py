"""What a record consists of: its fields and the names of the columns every packed dataset has."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import field_validator

from xmodal_dist.errors import UsageError
from xmodal_dist.settings import Settings

__all__ = ["ID", "LABEL", "RESERVED", "WEIGHT", "Field", "check_fields", "parse_field"]

ID = "id"
LABEL = "label"
WEIGHT = "weight"
RESERVED = frozenset({ID, LABEL, WEIGHT})


class Field(Settings):
    """One field of a record: what the model sees as one modality.

    Attributes:
        name: unique in the dataset.
        kind: name of a modality, or a dotted path to a third party's.
        columns: the columns it reads, in order; exactly one for media. Text joins them, a table takes each as a cell.
    """

    name: str
    kind: str
    columns: tuple[str, ...]

    @field_validator("columns")
    @classmethod
    def _at_least_one(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if not columns:
            raise ValueError("a field needs at least one column")
        return columns


def check_fields(fields: Iterable[Field]) -> None:
    """Raise :class:`UsageError` where names repeat or a column would collide with ``id``, ``label`` or ``weight``."""
    names: set[str] = set()
    columns: dict[str, str] = {}
    for field in fields:
        if field.name in names:
            raise UsageError(
                f"two fields are named {field.name!r}; give one of them another name with --field"
            )
        if "+" in field.name or ":" in field.name:
            raise UsageError(f"field name {field.name!r} must not contain '+' or ':'")
        names.add(field.name)
        for column in field.columns:
            if column in RESERVED:
                raise UsageError(
                    f"field {field.name!r} reads the column {column!r}, a reserved name; rename the column"
                )
            if column in columns:
                raise UsageError(f"column {column!r} belongs to both {columns[column]!r} and {field.name!r}")
            columns[column] = field.name


def parse_field(text: str) -> Field:
    """A field written as ``NAME=KIND`` (its column is NAME) or ``NAME=KIND:COLUMN,COLUMN...``.

    Raises:
        UsageError: it is written otherwise.
    """
    name, equals, rest = text.partition("=")
    kind, _, columns = rest.partition(":")
    names = tuple(c.strip() for c in columns.split(",") if c.strip()) or (name.strip(),)
    if not equals or not name.strip() or not kind.strip():
        raise UsageError(
            f"--field {text!r}: expected NAME=KIND or NAME=KIND:COLUMN,COLUMN, for example text=text:title,keywords"
        )
    return Field(name=name.strip(), kind=kind.strip(), columns=names)
