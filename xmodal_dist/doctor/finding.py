"""What a check found, and how sizes are told."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Finding", "gib", "graded"]


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
