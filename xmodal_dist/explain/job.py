"""Explaining a split: read this first.

Records are read in bounded batches; each is predicted once with all 2^M sets of its fields shown, which gives the
contributions. A few are then looked at closely: worst errors first, then some right ones, or those that were asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from xmodal_dist.bundle import Bundle, load_bundle
from xmodal_dist.dataset.manifest import Manifest, load_manifest
from xmodal_dist.dataset.schema import ID, LABEL
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.explain.closely import COLUMNS, Look, look_at, methods
from xmodal_dist.explain.columns import REPEATS, Part, permutation_importance
from xmodal_dist.explain.contributions import by_field, summarise
from xmodal_dist.explain.sample import choose, predict, read
from xmodal_dist.explain.views import View
from xmodal_dist.shapley import shapley_values
from xmodal_dist.task import MULTICLASS

__all__ = ["Explanation", "Shown", "explain"]

_VERSION = 1
_CLOSELY_AT_ONCE = 8
_SHARE_OF_ERRORS = 2 / 3
_SEED = 0


class Shown(NamedTuple):
    """A record that was looked at closely: id, true and predicted class, and the latter's probability."""

    id: str
    truth: str
    label: str
    probability: float


class Explanation(NamedTuple):
    """What was found.

    Attributes:
        content: JSON-able content of ``explanation.json``; docs/explain.md describes it.
        table: a row for each record: id, truth, label, probability, baseline, contributions.
        shown: the records that were looked at closely, in order.
        views: what the model sees of their pictures and sounds, by id and field.
    """

    content: dict[str, Any]
    table: pa.Table
    shown: list[Shown]
    views: dict[str, dict[str, View]]


@dataclass
class _Found:
    """What is kept of all records; ``table`` has ids, labels and the columns of fields that are no media."""

    tables: list[pa.Table] = field(default_factory=list)
    probabilities: list[NDArray[np.float32]] = field(default_factory=list)
    coalitions: list[NDArray[np.float32]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)


class _Told(NamedTuple):
    """What the model said of n records, and what it should have said."""

    ids: list[str]
    labels: list[str]
    present: NDArray[np.bool_]
    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]
    probability: NDArray[np.float32]
    baseline: NDArray[np.float32]
    contributions: NDArray[np.float64]


def explain(
    bundle: str, dataset: str, split: str, rows: int = 24, ids: Sequence[str] = (), max_rows: int = 2000
) -> Explanation:
    """Explain a bundle's predictions of a split, in this process.

    Args:
        bundle: path or URI of the bundle.
        dataset: path or URI of a packed dataset.
        split: which split.
        rows: records to look at closely.
        ids: look at these instead.
        max_rows: most records that contributions and importances are taken over; drawn evenly, always the same.

    Raises:
        UsageError: no such split or record, or too many fields.
        DataError: none of the records can be decoded, or one of ``ids`` cannot.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, manifest = load_bundle(bundle, device), load_manifest(dataset)
    if model.task is not MULTICLASS:
        raise UsageError(
            f"explain is for models of one class a record, and {bundle} is {model.task.name}; of its predictions, "
            "--set score.contributions=true gives each field's contribution to the most probable class"
        )
    found = _see(model, dataset, manifest, split, max_rows, ids, device)
    table = pa.concat_tables(found.tables)
    told = _told(model, found, table)
    how = methods(model, table)
    chosen = [told.ids[row] for row in _choose_shown(told, rows, ids, found.rejected)]
    looks = _look_closely(model, dataset, manifest, split, chosen, how, device)
    records = [looks[name].record for name in chosen]
    content = {
        "version": _VERSION,
        "bundle": model.fingerprint,
        "split": split,
        "rows_split": manifest.splits[split].rows,
        "rows": len(told.ids),
        "rows_rejected": len(found.rejected),
        "first_rejected": found.rejected[0] if found.rejected else None,
        "accuracy": float((told.predicted == told.truth).mean()),
        "mean_probability": float(told.probability.mean()),
        "mean_baseline": float(told.baseline.mean()),
        "explained_by": how,
        **summarise(
            told.contributions, told.present, told.predicted, told.truth, model.model.fields, model.classes
        ),
        "importance_repeats": REPEATS,
        "columns": [
            line
            for spec in model.specs
            if how[spec.name] == COLUMNS
            for line in permutation_importance(model, spec, table, found.parts, told.truth)
        ],
        "records": records,
    }
    shown = [Shown(*(record[key] for key in Shown._fields)) for record in records]
    return Explanation(content, _table(model, told), shown, {name: looks[name].views for name in chosen})


def _see(
    model: Bundle,
    dataset: str,
    manifest: Manifest,
    split: str,
    max_rows: int,
    ids: Sequence[str],
    device: torch.device,
) -> _Found:
    """Predict the records that everything is taken over."""
    plain = [spec for spec in model.specs if not spec.modality.is_media]
    kept = [ID, LABEL, *(column for spec in plain for column in spec.columns)]
    found = _Found()
    for table, base in read(choose(dataset, manifest, split, max_rows, ids), model.specs):
        seen, rejected = predict(model, table, base, device)
        found.rejected += rejected
        if seen is not None:
            found.tables.append(seen.table.select(kept))
            found.probabilities.append(seen.probabilities)
            found.coalitions.append(seen.coalitions)
            found.parts.append(Part(seen.batch.present, seen.outputs if plain else {}))
    if not found.tables:
        raise DataError(f"none of the records can be decoded; first: {found.rejected[0]}")
    return found


def _told(model: Bundle, found: _Found, table: pa.Table) -> _Told:
    probabilities, coalitions = np.concatenate(found.probabilities), np.concatenate(found.coalitions)
    index = {name: i for i, name in enumerate(model.classes)}
    labels = table.column(LABEL).to_pylist()
    return _Told(
        ids=table.column(ID).to_pylist(),
        labels=labels,
        present=np.concatenate([part.present.cpu().numpy() for part in found.parts]),
        predicted=probabilities.argmax(axis=1),
        truth=np.array([index.get(name, -1) for name in labels]),
        probability=probabilities.max(axis=1),
        baseline=coalitions[:, 0],
        contributions=shapley_values(coalitions),
    )


def _choose_shown(told: _Told, rows: int, ids: Sequence[str], rejected: Sequence[str]) -> list[int]:
    """Those asked for, or the most confident errors and, of at least a third of the places, right ones at random."""
    if ids:
        place = {name: row for row, name in enumerate(told.ids)}
        bad = [name for name in ids if name not in place]
        if bad:
            raise DataError(f"--ids: the record {bad[0]!r} cannot be decoded; {'; '.join(rejected)}")
        return [place[name] for name in dict.fromkeys(ids)]
    if rows < 1:
        raise UsageError(f"--rows {rows}: look at one record at least")
    right = told.predicted == told.truth
    errors = np.flatnonzero(~right)
    errors = errors[np.argsort(-told.probability[errors], kind="stable")]
    others = np.random.default_rng(_SEED).permutation(np.flatnonzero(right))
    num_errors = min(len(errors), max(round(rows * _SHARE_OF_ERRORS), rows - len(others)))
    return [*errors[:num_errors].tolist(), *others[: rows - num_errors].tolist()]


def _look_closely(
    model: Bundle,
    dataset: str,
    manifest: Manifest,
    split: str,
    ids: Sequence[str],
    how: dict[str, str],
    device: torch.device,
) -> dict[str, Look]:
    looks: dict[str, Look] = {}
    for table, base in read(choose(dataset, manifest, split, 0, ids), model.specs):
        for start in range(0, table.num_rows, _CLOSELY_AT_ONCE):
            seen, _ = predict(model, table.slice(start, _CLOSELY_AT_ONCE), base, device)
            if seen is not None:
                # cuDNN gives no gradients of recurrent networks outside of training.
                with torch.backends.cudnn.flags(enabled=False):
                    found = look_at(model, seen, how)
                looks |= {look.record["id"]: look for look in found}
    return looks


def _table(model: Bundle, told: _Told) -> pa.Table:
    classes = pa.array(model.classes, pa.string())
    fields = model.model.fields
    kind = pa.struct([(name, pa.float64()) for name in fields])
    return pa.table(
        {
            "id": pa.array(told.ids, pa.string()),
            "truth": pa.array(told.labels, pa.string()),
            "label": classes.take(pa.array(told.predicted)),
            "probability": pa.array(told.probability),
            "baseline": pa.array(told.baseline),
            "contributions": pa.array(by_field(told.contributions, told.present, fields), kind),
        }
    )
