"""The base of every settings class: frozen, unknown names refused with the nearest known one; and comparing them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["Settings", "differences", "shown"]


class Settings(BaseModel):
    """Base of every settings section; each owner keeps its own beside its code."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = set(cls.model_fields)
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known names: {', '.join(sorted(known))}"
                raise ValueError(f"unknown setting {name!r}; {hint}")
        return values


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """Where two nested mappings of plain values differ, in words: ``train.epochs was 4, now 8``."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield f"{at} was {old!r}, now {new!r}"


def shown(value: Any) -> str:
    """A setting's value for people: three digits of a number with a fraction."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
