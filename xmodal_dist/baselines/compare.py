"""A network beside classical models on the same rows: fit them all, predict the split, compare row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist.baselines.fit import Classical, fit_classical
from xmodal_dist.baselines.models import Baseline, named
from xmodal_dist.baselines.result import Contender, contest
from xmodal_dist.baselines.rows import Rows, join, read_split
from xmodal_dist.dataset.manifest import Manifest
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.modalities.fields import FieldSpec

__all__ = ["MAX_ROWS", "Comparison", "NetworkPredictions", "Plan", "compare_with_baselines", "plan"]

MAX_ROWS = 10_000
"""Rows of the train split, and of the validation split, that the classical models see by default."""

_ROWS_AT_ONCE = 2048
_TRAIN, _VAL = "train", "val"


class NetworkPredictions(NamedTuple):
    """What the network says of the split.

    Attributes:
        ids: [n] ids of its records; one that could not be scored is not among them.
        by_fields: fields shown to it -> [n] class index: all fields compared first, then each alone.
        fit_cpu_s: CPU-seconds of its training; None where nobody knows.
    """

    ids: Sequence[str]
    by_fields: Mapping[tuple[str, ...], NDArray[np.int64]]
    fit_cpu_s: float | None


class Comparison(NamedTuple):
    """The content of ``comparison.json``; and per row ``id``, ``truth`` and what each model says, a column a model."""

    result: dict[str, Any]
    predictions: pa.Table


class Plan(NamedTuple):
    """What to compare.

    Attributes:
        split: the rows to compare on; where it is ``val`` itself, nothing is chosen on it.
        specs: the fields, as the network reads them.
        baselines: the classical models.
        max_rows: rows of the train and of the validation split that they see, drawn at random, always the same.
    """

    split: str
    specs: tuple[FieldSpec, ...]
    baselines: tuple[Baseline, ...]
    max_rows: int

    @property
    def field_sets(self) -> list[tuple[str, ...]]:
        """What to show the network: all fields compared; then each alone, where they are several."""
        names = tuple(spec.name for spec in self.specs)
        return [names, *((name,) for name in names if len(names) > 1)]


def plan(
    manifest: Manifest,
    split: str,
    specs: Sequence[FieldSpec],
    fields: Sequence[str],
    baselines: Sequence[str],
    max_rows: int,
) -> Plan:
    """Settle what to compare; no fields and no baselines mean all.

    Raises:
        UsageError: there is no such split, field or baseline, or the split is the one that baselines are fitted to.
    """
    for needed in (_TRAIN, split):
        manifest.split_shards(needed)
    if split == _TRAIN:
        raise UsageError(
            "--split train: the classical models are fitted to it, as the network is; compare on another"
        )
    known = [spec.name for spec in specs]
    for name in fields:
        if name not in known:
            raise UsageError(f"--fields: the bundle has no field {name!r}; its fields: {', '.join(known)}")
    chosen = tuple(spec for spec in specs if not fields or spec.name in fields)
    return Plan(split, chosen, named(baselines), max_rows)


def compare_with_baselines(
    dataset: str,
    manifest: Manifest,
    plan: Plan,
    classes: Sequence[str],
    network: NetworkPredictions,
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Fit the baselines to the train split, choose their settings on ``val``, and compare all on the plan's split.

    Args:
        dataset: path or URI.
        manifest: its manifest.
        plan: what to compare.
        classes: class names by index.
        network: its predictions of the split.
        say: told what is being done.

    Raises:
        DataError: a label that the network does not know, or no row in common.
    """
    split, specs, max_rows = plan.split, plan.specs, plan.max_rows
    say("reading the train split")
    train = join(list(read_split(dataset, manifest, _TRAIN, specs, classes, max_rows)))
    val = None
    if split != _VAL and _VAL in manifest.splits and manifest.splits[_VAL].rows:
        val = join(list(read_split(dataset, manifest, _VAL, specs, classes, max_rows)))
    fitted = fit_classical(specs, train, val, plan.baselines, len(classes), say)
    say(f"predicting the {split} split")
    found = _predicted(fitted, read_split(dataset, manifest, split, specs, classes, None), network)
    contenders = [*_of_network(network), *_of_classical(fitted)]
    rejected = {_TRAIN: train.rejected, split: found.rejected}
    result = {
        "split": split,
        "rows": len(found.truth),
        "classes": len(classes),
        "fields": [spec.name for spec in specs],
        "rows_train": manifest.splits[_TRAIN].rows,
        "rows_fitted": len(train.ids),
        "rows_chosen_on": len(val.ids) if val is not None else 0,
        "max_rows": max_rows,
        "rejected": rejected if val is None else rejected | {_VAL: val.rejected},
        "rows_only_one_side": found.unmatched,
        "features": fitted.features,
        "skipped": fitted.skipped,
        **contest(contenders, found.truth, found.by_model, len(classes)),
    }
    names = pa.array(classes, pa.string())
    columns = {c.name: names.take(pa.array(found.by_model[c.name])) for c in contenders}
    table = pa.table({"id": found.ids, "truth": names.take(pa.array(found.truth)), **columns})
    return Comparison(result, table)


class _Predicted(NamedTuple):
    """What everyone says of the rows that everyone could read."""

    ids: list[str]
    truth: NDArray[np.int64]
    by_model: dict[str, NDArray[np.int64]]
    rejected: int
    unmatched: int


def _predicted(fitted: Classical, parts: Iterable[Rows], network: NetworkPredictions) -> _Predicted:
    place = {record: i for i, record in enumerate(network.ids)}
    ids: list[str] = []
    truth, by_model, rejected, read = [], list[dict[str, NDArray[np.int64]]](), 0, 0
    for rows in _in_bulk(parts):
        known = np.array([record in place for record in rows.ids], dtype=np.bool_)
        ids.extend(record for record in rows.ids if record in place)
        truth.append(rows.labels[known])
        by_model.append({name: values[known] for name, values in fitted.predict(rows).items()})
        rejected, read = rejected + rows.rejected, read + len(rows.ids)
    if not ids:
        raise DataError(
            "the network's predictions and the split have no record in common: is it another dataset?"
        )
    places = np.array([place[record] for record in ids])
    said = {_network_name(fields): values[places] for fields, values in network.by_fields.items()}
    said |= {name: np.concatenate([part[name] for part in by_model]) for name in by_model[0]}
    unmatched = read + len(network.ids) - 2 * len(ids)
    return _Predicted(ids, np.concatenate(truth), said, rejected, unmatched)


def _in_bulk(parts: Iterable[Rows]) -> Iterator[Rows]:
    waiting: list[Rows] = []
    for part in parts:
        waiting.append(part)
        if sum(len(rows.ids) for rows in waiting) >= _ROWS_AT_ONCE:
            yield join(waiting)
            waiting = []
    if waiting:
        yield join(waiting)


def _network_name(fields: tuple[str, ...]) -> str:
    return f"network:{'+'.join(fields)}"


def _of_network(network: NetworkPredictions) -> Iterator[Contender]:
    everything = next(iter(network.by_fields))
    for fields in network.by_fields:
        whole = fields == everything
        yield Contender(
            name=_network_name(fields),
            title="the network" if whole else f"the network shown {fields[0]} alone",
            role="network" if whole else "network_single",
            model="network",
            fields=fields,
            fit_cpu_s=network.fit_cpu_s if whole else None,
        )


def _of_classical(fitted: Classical) -> Iterator[Contender]:
    for model in fitted.models:
        yield Contender(
            name=model.name,
            title=model.title,
            role="baseline",
            model=model.baseline.name,
            fields=(model.field,),
            choice=model.choice,
            val_accuracy=model.val_accuracy,
            fit_cpu_s=model.fit_cpu_s,
            note=model.note,
        )
    for stack in fitted.stacks:
        parts = ", ".join(member.title for member in stack.members)
        yield Contender(
            name=stack.name,
            title=stack.title,
            role="stack",
            model=stack.name.split(":")[0],
            fields=tuple(member.field for member in stack.members),
            choice=stack.best.choice,
            val_accuracy=stack.best.val_accuracy,
            fit_cpu_s=stack.fit_cpu_s,
            note="; ".join(filter(None, [parts, stack.best.note])),
        )
