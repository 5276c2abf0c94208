"""A table of predictions, its columns and what every evaluation of it has, whatever kind of label it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist.calibrate import NOTHING
from xmodal_dist.errors import DataError

__all__ = [
    "SUBSET_PREFIX",
    "Evaluation",
    "Mistake",
    "Subset",
    "check_columns",
    "fields_present",
    "fusion",
    "subset_column",
    "subset_columns",
    "subsets",
    "unknown_labels",
    "vectors",
]

SUBSET_PREFIX = "subset:"
_MAX_NAMED = 10


def subset_column(fields: Sequence[str]) -> str:
    """Name of the column of probabilities that these fields alone give, for example ``subset:image+text``."""
    return SUBSET_PREFIX + "+".join(fields)


@dataclass(frozen=True)
class Mistake:
    """A record whose predicted class is not the true one.

    Attributes:
        id: the record's id.
        truth: true class.
        label: predicted class.
        probability: of the predicted class, in [0, 1].
    """

    id: str
    truth: str
    label: str
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: the content of ``metrics.json``: :func:`xmodal_dist.metrics.classification_metrics` and
            ``per_subset`` (``image+text`` -> ``rows``; ``rows_present``, those that have every field of the
            subset; ``accuracy``, ``macro_f1``, ``log_loss`` and ``ece`` over ``rows``; ``accuracy_present`` over
            ``rows_present``, None without any), ``best_single`` (the field that alone is most accurate; None
            without subset columns), ``fusion_gain`` (accuracy less that of ``best_single``; None with fewer than two
            fields), ``withheld`` (:func:`xmodal_dist.metrics.withheld_accuracy`; None where the columns do not tell),
            ``average_precision`` (one-vs-rest, macro over the classes that have rows; of each in ``per_class``),
            ``uncalibrated`` (``ece`` and ``log_loss`` of the logits as they are; None without the column ``logits``)
            and ``abstention`` (for each threshold given its ``target_precision`` and ``threshold``, and the
            ``coverage`` and ``precision`` here; ``precision`` is None where nothing is covered).
        worst: the errors, the most confident first.
        curves: JSON-able data of plots: ``reliability`` (:func:`xmodal_dist.metrics.reliability_bins`),
            ``reliability_uncalibrated`` (None without the column ``logits``), ``precision_recall``
            (:func:`xmodal_dist.precision_recall.precision_recall`), and ``abstention``: lists of ``threshold``,
            ``coverage`` and ``precision`` where the model may keep silent about what it is less sure of.
    """

    metrics: dict[str, Any]
    worst: tuple[Mistake, ...]
    curves: dict[str, Any]


class Subset(NamedTuple):
    """What some fields alone say.

    Attributes:
        name: ``image+text``.
        probabilities: [n, C].
        complete: [n] bool, whether the record has all of these fields.
    """

    name: str
    probabilities: NDArray[np.floating[Any]]
    complete: NDArray[np.bool_]


def check_columns(predictions: pa.Table, *labels: str) -> None:
    """Raise :class:`DataError` where there are no rows, or a column is absent; ``labels``: that of what was said."""
    needed = {"id", "truth", *labels, "probabilities", "modalities"}
    missing = sorted(needed - set(predictions.column_names))
    if missing:
        raise DataError(f"the predictions lack the column(s) {', '.join(missing)}")
    if predictions.num_rows == 0:
        raise DataError("there is nothing to evaluate: the predictions have no rows; is the split empty?")


def unknown_labels(unknown: Counter[Any], rows: int, class_names: Sequence[str]) -> DataError:
    """What to say of true classes that the model does not know, given how often each occurs in so many rows."""
    named = [
        f"{'no label' if label is None else repr(label)} ({count} row{'s' if count > 1 else ''})"
        for label, count in sorted(unknown.items(), key=lambda item: (-item[1], str(item[0])))
    ]
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return DataError(
        f"{unknown.total()} of {rows} rows have a label that the model was not trained on: "
        f"{', '.join(named[:_MAX_NAMED])}{more}. It knows: {_shortened(class_names)}. "
        "Retrain on data with these labels, or filter the rows out of the split that is evaluated."
    )


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[: 3 * _MAX_NAMED])
    return shown + (f" and {len(names) - 3 * _MAX_NAMED} more" if len(names) > 3 * _MAX_NAMED else "")


def vectors(predictions: pa.Table, name: str, num_classes: int) -> NDArray[np.floating[Any]]:
    """The column as [n, C]."""
    column = predictions.column(name)
    if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != num_classes:
        expected = f"a fixed-size list of {num_classes} numbers, one a class"
        raise DataError(f"column {name!r} is {column.type}; expected {expected}")
    if column.null_count:
        raise DataError(f"column {name!r} has {column.null_count} null rows")
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    values: NDArray[np.floating[Any]] = np.concatenate(flat).reshape(-1, num_classes)
    if not np.isfinite(values).all():
        raise DataError(f"column {name!r} has values that are not finite: the model has diverged")
    return values


def fields_present(predictions: pa.Table) -> list[frozenset[str]]:
    """The fields that each record has."""
    return [frozenset(fields or ()) for fields in predictions.column("modalities").to_pylist()]


def subset_columns(predictions: pa.Table) -> dict[str, str]:
    """Name of each subset -> its column."""
    names = [name for name in predictions.column_names if name.startswith(SUBSET_PREFIX)]
    return {name.removeprefix(SUBSET_PREFIX): name for name in names}


def subsets(predictions: pa.Table, num_classes: int) -> Iterator[Subset]:
    """Every subset of the fields that there is a column of, but for that of no field."""
    present = fields_present(predictions)
    for name, column in subset_columns(predictions).items():
        if name != NOTHING:
            complete = np.array([fields.issuperset(name.split("+")) for fields in present], dtype=np.bool_)
            yield Subset(name, vectors(predictions, column, num_classes), complete)


def fusion(figure: str, whole: float | None, per_subset: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``best_single`` and ``fusion_gain`` of :class:`Evaluation`, by a figure that is ``whole`` of all fields."""
    singles = {name: values[figure] or 0.0 for name, values in per_subset.items() if "+" not in name}
    if not singles:
        return {"best_single": None, "fusion_gain": None}
    best = max(singles, key=lambda name: singles[name])
    gain = whole - singles[best] if whole is not None and len(singles) > 1 else None
    return {"best_single": best, "fusion_gain": gain}
