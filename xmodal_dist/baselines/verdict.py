"""What a comparison says, in sentences: who wins, whether that is more than chance, and what fusion is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["SIGNIFICANT", "best_of", "sentences"]

SIGNIFICANT = 0.05
"""Corrected p-values below this are more than chance."""

_Entry = Mapping[str, Any]


def sentences(models: Sequence[_Entry], comparisons: Sequence[_Entry], rows: int) -> list[str]:
    """The verdict.

    Args:
        models: as in ``comparison.json``: ``name``, ``title``, ``role`` (``network``, ``network_single``, ``baseline``,
            ``stack``), ``fields``, ``accuracy``, ``val_accuracy``.
        comparisons: ``first``, ``second`` (names), ``difference``, ``interval``, ``p_holm``, ``significant``.
        rows: how many were compared.
    """
    network = next(m for m in models if m["role"] == "network")
    classical = [m for m in models if m["role"] in ("baseline", "stack")]
    found = {(c["first"], c["second"]): c for c in comparisons}
    said: list[str] = []
    if classical:
        chosen = best_of(classical)
        said.append(_against(network, chosen, found[network["name"], chosen["name"]], rows))
        said.extend(_also_above(network, classical, chosen))
    said.extend(_fusion(network, models, found, rows))
    said.extend(_classical_fusion(classical, found, rows))
    return said


def best_of(models: Sequence[_Entry]) -> _Entry:
    """The best on the validation split, or without one the best of the rows compared, which flatters it."""
    return max(models, key=lambda m: (m["val_accuracy"] or 0.0, m["accuracy"]))


def _against(network: _Entry, other: _Entry, found: _Entry, rows: int) -> str:
    how = "best on the validation split" if other["val_accuracy"] is not None else "best on these very rows"
    pair = (
        f"the network reaches {_percent(network['accuracy'])}, the classical model that is {how} ({other['title']}) "
        f"{_percent(other['accuracy'])}"
    )
    if found["difference"] > 0 and found["significant"]:
        return f"The network wins: {pair}. {_more_than_chance(found)}"
    if found["difference"] > 0:
        return f"The network does not clearly win: {pair}. {_chance(found, rows)}"
    if found["significant"]:
        return f"The network does not win; it loses: {pair}. {_more_than_chance(found)}"
    return f"The network does not win: {pair}. {_chance(found, rows)}"


def _also_above(network: _Entry, classical: Sequence[_Entry], chosen: _Entry) -> list[str]:
    above = [m for m in classical if m["accuracy"] >= network["accuracy"] and m is not chosen]
    if not above:
        return []
    best = max(above, key=lambda m: m["accuracy"])
    many = "One more classical model comes" if len(above) == 1 else f"{len(above)} more classical models come"
    return [
        f"{many} out at least level with the network on these rows; the highest is {best['title']} at "
        f"{_percent(best['accuracy'])}. Chosen by the rows it is judged on, that figure flatters it."
    ]


def _fusion(network: _Entry, models: Sequence[_Entry], found: Mapping[Any, _Entry], rows: int) -> list[str]:
    singles = [m for m in models if m["role"] == "network_single"]
    if not singles:
        return []
    best = max(singles, key=lambda m: m["accuracy"])
    return [
        _gain(
            "In the network", "of the same network", network, best, found[network["name"], best["name"]], rows
        )
    ]


def _classical_fusion(classical: Sequence[_Entry], found: Mapping[Any, _Entry], rows: int) -> list[str]:
    stacks = [m for m in classical if m["role"] == "stack"]
    singles = [m for m in classical if m["role"] == "baseline"]
    if not stacks or not singles:
        return []
    stack, single = best_of(stacks), best_of(singles)
    where = f"Among the classical models ({stack['title']})"
    return [_gain(where, "of any", stack, single, found[stack["name"], single["name"]], rows)]


def _gain(where: str, whose: str, fused: _Entry, single: _Entry, found: _Entry, rows: int) -> str:
    pair = (
        f"all fields together reach {_percent(fused['accuracy'])}, the best single modality {whose} "
        f"({single['title']}) {_percent(single['accuracy'])}"
    )
    if found["difference"] > 0 and found["significant"]:
        return f"{where}, fusion pays: {pair}. {_more_than_chance(found)}"
    if found["difference"] > 0:
        return (
            f"{where}, fusion does not clearly beat the best single modality: {pair}. {_chance(found, rows)}"
        )
    if found["significant"]:
        return f"{where}, fusion does harm: {pair}. {_more_than_chance(found)}"
    return f"{where}, fusion does not beat the best single modality: {pair}. {_chance(found, rows)}"


def _more_than_chance(found: _Entry) -> str:
    return f"The difference of {_points(found)} is more than chance (corrected p {_p(found['p_holm'])})."


def _chance(found: _Entry, rows: int) -> str:
    if found["difference"] == 0:
        return f"On {rows:,} rows there is no difference."
    return f"On {rows:,} rows a difference of {_points(found)} is within chance (corrected p {_p(found['p_holm'])})."


def _points(found: _Entry) -> str:
    sign = 1 if found["difference"] > 0 else -1
    low, high = sorted(sign * end for end in found["interval"])
    return f"{100 * abs(found['difference']):.1f} points (95 % interval {_tenths(low)} to {_tenths(high)})"


def _tenths(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:.1f}"


def _percent(value: float) -> str:
    return f"{99.9 if value < 1 and round(100 * value, 1) == 100 else 100 * value:.1f} %"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
