"""What a check found, how sizes are told, and what checks of this machine and of a cluster's nodes share."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["LOW_BYTES", "ONE_DRIVER", "SLOW_BYTES_PER_S", "Finding", "gib", "graded"]

LOW_BYTES = 1 << 30
"""Less free memory or disk than this is a warning."""

SLOW_BYTES_PER_S = 10e6
"""So is slower storage."""

ONE_DRIVER = "scoring lets one driver work at a time there; use storage with conditional writes for more"
"""What to do about storage on which several writers can create the same file."""


class Finding(NamedTuple):
    """One check: its outcome, what was seen, and what to do ("" if nothing)."""

    check: str
    level: Literal["ok", "warning", "error"]
    seen: str
    advice: str = ""


def gib(size: float) -> str:
    """A number of bytes in GiB, or in MiB where it is less than half of one."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 29 else f"{size / (1 << 20):.1f} MiB"


def graded(check: str, seen: str, advice: str, *, warn: bool, fail: bool = False) -> Finding:
    """The worst level that applies; advice only where there is something to do."""
    if fail:
        return Finding(check, "error", seen, advice)
    return Finding(check, "warning", seen, advice) if warn else Finding(check, "ok", seen)
