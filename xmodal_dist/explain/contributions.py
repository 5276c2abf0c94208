"""Contributions of the fields, over a split and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["by_field", "points", "sentence", "summarise"]

_NOTICEABLE = 0.005
"""Half a percentage point: what rounds to none."""


def summarise(
    contributions: NDArray[np.float64],
    present: NDArray[np.bool_],
    predicted: NDArray[np.int64],
    truth: NDArray[np.int64],
    fields: Sequence[str],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Means over records, JSON-able; an absent field contributes 0, so that signed means add up over the fields.

    Args:
        contributions: [n, M].
        present: [n, M].
        predicted: [n] class index.
        truth: [n] class index, -1 for a class that the model does not know.
        fields: M names.
        classes: C names.

    Returns:
        ``fields``: name -> ``rows_present``, ``mean_absolute_present`` (over those rows, None without any), and for
        ``all``, ``right`` and ``wrong`` predictions ``rows``, ``mean_absolute`` and ``mean_signed`` (None without
        rows); ``classes``: predicted class -> ``rows``, and by field ``mean_absolute`` and ``mean_signed``; classes
        that are never predicted are left out.
    """
    right = predicted == truth
    groups = {"all": np.ones_like(right), "right": right, "wrong": ~right}
    per_field = {}
    for m, name in enumerate(fields):
        there = present[:, m]
        per_field[name] = {
            "rows_present": int(there.sum()),
            "mean_absolute_present": float(abs(contributions[there, m]).mean()) if there.any() else None,
            **{group: _means(contributions[rows, m]) for group, rows in groups.items()},
        }
    per_class = {}
    for c in np.unique(predicted).tolist():
        own = contributions[predicted == c]
        means = {name: _means(own[:, m]) for m, name in enumerate(fields)}
        per_class[classes[c]] = {
            "rows": len(own),
            "mean_absolute": {name: mean["mean_absolute"] for name, mean in means.items()},
            "mean_signed": {name: mean["mean_signed"] for name, mean in means.items()},
        }
    return {"fields": per_field, "classes": per_class}


def _means(values: NDArray[np.float64]) -> dict[str, Any]:
    some = len(values) > 0
    return {
        "rows": len(values),
        "mean_absolute": float(abs(values).mean()) if some else None,
        "mean_signed": float(values.mean()) if some else None,
    }


def by_field(
    contributions: NDArray[np.float64], present: NDArray[np.bool_], fields: Sequence[str]
) -> list[dict[str, float | None]]:
    """Each record's contributions by name, None where the field is absent; arguments as in :func:`summarise`."""
    return [
        {name: float(row[m]) if there[m] else None for m, name in enumerate(fields)}
        for row, there in zip(contributions, present, strict=True)
    ]


def points(value: float) -> str:
    """A difference of probabilities as signed percentage points, ``+12``; with a decimal where it is below 10."""
    size = 100 * abs(value)
    text = f"{size:.0f}" if size >= 9.95 else f"{size:.1f}"
    return text if float(text) == 0 else ("+" if value > 0 else "\N{MINUS SIGN}") + text


def sentence(
    label: str, truth: str, probability: float, baseline: float, contributions: Mapping[str, float | None]
) -> str:
    """What the contributions say, in plain words.

    Args:
        label: predicted class.
        truth: true class.
        probability: of the predicted class.
        baseline: its probability with no field shown.
        contributions: by field; None where it is absent.
    """
    there = {name: value for name, value in contributions.items() if value is not None}
    ranked = sorted(there, key=lambda name: -abs(there[name]))
    named = {name: f"{name} ({points(there[name])}{'' if i else ' points'})" for i, name in enumerate(ranked)}
    speaking = [name for name in ranked if there[name] >= _NOTICEABLE]
    against = [name for name in ranked if there[name] <= -_NOTICEABLE]
    idle = [name for name in ranked if abs(there[name]) < _NOTICEABLE]
    absent = [name for name, value in contributions.items() if value is None]
    verdict = "right" if label == truth else f"wrong: it is {truth}"
    said = [f"Predicted {label} with {100 * probability:.0f} %, which is {verdict}."]
    parts = [
        f"{_listed([named[name] for name in names])} spoke {side} it"
        for names, side in ((speaking, "for"), (against, "against"))
        if names
    ]
    if parts:
        said.append(", ".join(parts) + ".")
    if idle:
        said.append(f"{_listed(idle)} made no difference.")
    if absent:
        said.append(f"{_listed(absent)} {'is' if len(absent) == 1 else 'are'} missing.")
    said.append(f"With nothing shown it would have {100 * baseline:.0f} %.")
    return " ".join(said)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
