"""What a dataset looks like, in counts: fitted where a model is trained, counted where it scores, and compared.

Every measure of a field (:meth:`Modality.measures`) has bins whose edges are the deciles of the training sample. Counts
over these bins add up in any order, so that each worker, unit and driver may count for itself.

Two sets of counts are compared by the population stability index over the shares of the bins, p in training and q now:
PSI = sum (q - p) ln(q / p). Below 0.1 is stable, 0.25 and above a major shift (Siddiqi 2006, "Credit Risk Scorecards").
Of few rows the index is large without any shift: n and m rows of one distribution over B bins give about
(1/n + 1/m) times a chi-squared variable of B - 1 degrees of freedom (Yurdakul 2018, "Statistical Properties of
Population Stability Index"). Its 99th percentile is told as ``chance``, and what lies below it is called chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_dist.batch import Arrays
from xmodal_dist.errors import CheckpointError
from xmodal_dist.modalities.fields import FieldSpec

__all__ = ["MAJOR", "MODERATE", "Profile", "ProfileCounts", "Sample", "count", "drift", "fit_profile"]

MODERATE, MAJOR = 0.1, 0.25
"""From these values of the index on, a shift is called moderate and major."""

Sample = tuple[Mapping[str, Arrays], NDArray[np.bool_], NDArray[np.int64]]
"""Decoded arrays by field, ``present`` [n, M], and the rows of them that count."""

_Counts = NDArray[np.int64]
_VERSION = 1
_DECILES = np.arange(1, 10) / 10
_NORMAL_99TH = 2.3263
_EMPTY_BIN = 0.5
"""Rows that a bin without any is taken to hold, so that the logarithm of its share exists."""


@dataclass(frozen=True, eq=False)
class ProfileCounts:
    """How many records fell where; the sum of two is that of their records together, and ``ProfileCounts()`` is none.

    Attributes:
        rows: records counted.
        missing: field -> records without it.
        measures: field -> measure -> records by bin: at most the first edge, above it and at most the second, and so
            on; above the last edge; without such a figure though the field is there. They add up to the records that
            have the field.
    """

    rows: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    measures: dict[str, dict[str, _Counts]] = field(default_factory=dict)

    def __add__(self, other: ProfileCounts) -> ProfileCounts:
        missing, measures = dict(self.missing), {name: dict(own) for name, own in self.measures.items()}
        for name, rows in other.missing.items():
            missing[name] = missing.get(name, 0) + rows
        for name, theirs in other.measures.items():
            mine = measures.setdefault(name, {})
            for measure, counts in theirs.items():
                mine[measure] = mine[measure] + counts if measure in mine else counts
        return ProfileCounts(self.rows + other.rows, missing, measures)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProfileCounts) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> dict[str, Any]:
        """JSON-able and compact; no counts are ``{}``."""
        if not self.rows:
            return {}
        measures = {
            name: {measure: counts.tolist() for measure, counts in own.items()}
            for name, own in self.measures.items()
        }
        return {"rows": self.rows, "missing": dict(self.missing), "measures": measures}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> ProfileCounts:
        """Inverse of :meth:`to_json`."""
        measures = {
            name: {measure: np.array(counts, dtype=np.int64) for measure, counts in own.items()}
            for name, own in content.get("measures", {}).items()
        }
        return ProfileCounts(content.get("rows", 0), dict(content.get("missing", {})), measures)


@dataclass(frozen=True)
class Profile:
    """What the training data looked like.

    Attributes:
        edges: field -> measure -> edges of its bins, ascending.
        counts: of the training sample.
        labels: class -> records of the train split.
    """

    edges: dict[str, dict[str, tuple[float, ...]]]
    counts: ProfileCounts
    labels: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        edges = {name: {m: list(values) for m, values in own.items()} for name, own in self.edges.items()}
        return {"version": _VERSION, "edges": edges, "counts": self.counts.to_json(), "labels": self.labels}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Profile:
        """Inverse of :meth:`to_json`.

        Raises:
            CheckpointError: of another version.
        """
        if content.get("version") != _VERSION:
            raise CheckpointError(
                f"the bundle's profile.json has version {content.get('version')!r}; this release reads {_VERSION}"
            )
        edges = {
            name: {measure: tuple(values) for measure, values in own.items()}
            for name, own in content["edges"].items()
        }
        return Profile(edges, ProfileCounts.from_json(content["counts"]), dict(content["labels"]))


def fit_profile(specs: Sequence[FieldSpec], sample: Iterable[Sample], labels: Mapping[str, int]) -> Profile:
    """The profile of a sample of the training data.

    Args:
        specs: the fields, in the order of ``present``.
        sample: decoded records in pieces; only a few figures of each record are kept.
        labels: class -> records of the train split.
    """
    rows, missing = 0, dict.fromkeys((spec.name for spec in specs), 0)
    pieces: dict[str, dict[str, list[NDArray[np.float32]]]] = {spec.name: {} for spec in specs}
    for fields, present, counted in sample:
        rows += len(counted)
        for index, spec in enumerate(specs):
            shown, figures = _measured(spec, fields[spec.name], present[:, index], counted)
            missing[spec.name] += len(counted) - shown
            for measure, values in figures.items():
                pieces[spec.name].setdefault(measure, []).append(values)
    figures_of = {
        name: {measure: np.concatenate(parts) for measure, parts in own.items()}
        for name, own in pieces.items()
    }
    edges = {name: {m: _edges(values) for m, values in own.items()} for name, own in figures_of.items()}
    counts = {
        name: {m: _binned(values, edges[name][m]) for m, values in own.items()}
        for name, own in figures_of.items()
    }
    return Profile(edges, ProfileCounts(rows, missing, counts), dict(labels))


def count(
    profile: Profile,
    specs: Sequence[FieldSpec],
    fields: Mapping[str, Arrays],
    present: NDArray[np.bool_],
    rows: NDArray[np.int64] | None = None,
) -> ProfileCounts:
    """Count decoded records over the bins of a profile; thread-safe.

    Args:
        profile: fitted with the same fields.
        specs: the fields, in the order of ``present``.
        fields: their arrays, n records each.
        present: [n, M].
        rows: the records that count; None counts all.
    """
    counted = np.arange(len(present), dtype=np.int64) if rows is None else rows
    missing, measures = {}, {}
    for index, spec in enumerate(specs):
        shown, figures = _measured(spec, fields[spec.name], present[:, index], counted)
        missing[spec.name] = len(counted) - shown
        known = profile.edges.get(spec.name, {})
        measures[spec.name] = {m: _binned(figures[m], own) for m, own in known.items() if m in figures}
    return ProfileCounts(len(counted), missing, measures)


def drift(profile: Profile, counts: ProfileCounts, label_counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """How far counted records are from the training data, largest shift first in each of these groups: labels, fields.

    Args:
        profile: of the training data.
        counts: of the records.
        label_counts: class -> records it was predicted for. A model that errs in one direction shifts them as well.

    Returns:
        Rows, JSON-able: ``field`` ("" for labels), ``measure``, ``psi``, ``chance`` (what few rows alone would give),
        ``level`` (``stable``, ``moderate``, ``major``, or ``chance`` where the index is above a threshold, but not
        above chance), ``rows`` compared, ``bins`` in words, and for each bin its share ``before`` in training and
        ``now``. Without records on one side there is no row.
    """
    classes = [*profile.labels, *(name for name in label_counts if name not in profile.labels)]
    labels = [
        np.array([of.get(name, 0) for name in classes], dtype=np.int64)
        for of in (profile.labels, label_counts)
    ]
    rows, trained = _compared("", "label", classes, *labels), profile.counts
    shifts: list[dict[str, Any]] = []
    for name, without in trained.missing.items():
        here = (counts.missing.get(name, 0), counts.rows)
        before, now = (np.array([all_ - lack, lack]) for lack, all_ in ((without, trained.rows), here))
        shifts += _compared(name, "missing", ["there", "missing"], before, now)
        for measure, edges in profile.edges[name].items():
            found = counts.measures.get(name, {}).get(measure)
            if found is not None:
                shifts += _compared(name, measure, _bins(edges), trained.measures[name][measure], found)
    return rows + sorted(shifts, key=lambda row: -row["psi"])


def _measured(
    spec: FieldSpec, arrays: Arrays, present: NDArray[np.bool_], rows: NDArray[np.int64]
) -> tuple[int, dict[str, NDArray[np.float32]]]:
    """How many of some rows have the field, and their figures."""
    shown = rows[present[rows]]
    figures = spec.modality.measures(spec.settings, spec.fitted, arrays)
    return len(shown), {name: values[shown] for name, values in figures.items()}


def _edges(values: NDArray[np.float32]) -> tuple[float, ...]:
    """Deciles; a value that fills more than one tenth gets a bin of its own, so that what is below it shows."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ()
    deciles = np.quantile(finite, _DECILES, method="inverted_cdf")
    unique, times = np.unique(deciles, return_counts=True)
    below = np.nextafter(unique[times > 1], np.float32(-np.inf), dtype=np.float32)
    return tuple(np.union1d(unique, below).astype(np.float64).tolist())


def _binned(values: NDArray[np.float32], edges: Sequence[float]) -> _Counts:
    places = np.searchsorted(np.asarray(edges), values)
    places[np.isnan(values)] = len(edges) + 1
    return np.bincount(places, minlength=len(edges) + 2)


def _bins(edges: Sequence[float]) -> list[str]:
    """The bins of some edges in words."""
    if not edges:
        return ["any", "none"]
    shown = [f"{edge:.4g}" for edge in edges]
    middle = [low if low == high else f"{low} to {high}" for low, high in zip(shown, shown[1:], strict=False)]
    return [f"up to {shown[0]}", *middle, f"above {shown[-1]}", "none"]


def _compared(
    name: str, measure: str, bins: Sequence[str], before: _Counts, now: _Counts
) -> list[dict[str, Any]]:
    rows_before, rows_now = int(before.sum()), int(now.sum())
    if not rows_before or not rows_now:
        return []
    psi, chance = _stability_index(before, now), _chance(before, now)
    if psi < MODERATE:
        level = "stable"
    elif psi <= chance:
        level = "chance"
    else:
        level = "moderate" if psi < MAJOR else "major"
    row = {
        "field": name,
        "measure": measure,
        "psi": round(psi, 6),
        "chance": round(chance, 6),
        "level": level,
    }
    shares = {"before": (before / rows_before).tolist(), "now": (now / rows_now).tolist()}
    return [{**row, "rows": rows_now, "bins": list(bins), **shares}]


def _stability_index(before: _Counts, now: _Counts) -> float:
    """0 for equal shares; both sides have rows. Bins that are empty on both sides do not count."""
    used = (before > 0) | (now > 0)
    p, q = (np.maximum(side[used], _EMPTY_BIN) / side.sum() for side in (before, now))
    return float(((q - p) * np.log(q / p)).sum())


def _chance(before: _Counts, now: _Counts) -> float:
    """99th percentile of the index where nothing shifted; the chi-squared one by Wilson and Hilferty (1931)."""
    freedom = int(((before > 0) | (now > 0)).sum()) - 1
    if freedom < 1:
        return 0.0
    spread = 2 / (9 * freedom)
    percentile = freedom * (1 - spread + _NORMAL_99TH * math.sqrt(spread)) ** 3
    return float(percentile * (1 / before.sum() + 1 / now.sum()))
