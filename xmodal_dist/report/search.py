"""The report of a search: what the trials reached, which settings mattered, and the best ones to copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["SearchedTrial", "render"]


@dataclass(frozen=True)
class SearchedTrial:
    """A trial as it is on disk.

    Attributes:
        number: of the trial.
        record: its line in the table; {} of one under way.
        epochs: the lines of its ``metrics.jsonl`` with event ``epoch``.
    """

    number: int
    record: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]


def render(
    name: str,
    trials: Sequence[SearchedTrial],
    identity: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    best_yaml: str,
    test: Mapping[str, Any] | None,
) -> str:
    """The page."""
    return ""
