"""The columns of a scoring output, and those of their values that come from the model."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist.bundle import Bundle, subsets
from xmodal_dist.errors import UsageError
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.shapley import coalition_masks, shapley_values
from xmodal_dist.task import MULTILABEL

__all__ = [
    "ABSTAINED",
    "COALITIONS",
    "CONTRIBUTIONS",
    "EMBEDDING",
    "EMBEDDING_PREFIX",
    "FEATURES",
    "LABELS",
    "LOGITS",
    "PROBABILITIES",
    "SUBSET_PREFIX",
    "abstaining",
    "output_schema",
    "prediction_columns",
    "subset_names",
]

PROBABILITIES, LOGITS, EMBEDDING, FEATURES = "probabilities", "logits", "embedding", "features"
"""What a model says of n records: [n, C], calibrated; [n, C], as the network gives them; [n, E]; of each field
[n, M, D]. ``SUBSET_PREFIX`` + name of a subset is [n, C], calibrated."""
COALITIONS, CONTRIBUTIONS = "coalitions", "contributions"
"""What every set of fields says of the predicted class, [n, 2^M], and what comes of it: a Shapley value a field."""
SUBSET_PREFIX = "subset:"
EMBEDDING_PREFIX = "embedding:"
LABELS = "labels"
"""Column of a multilabel output: the classes whose probability reaches their threshold, the most probable first."""
ABSTAINED = "(abstained)"
"""Stands for no label where labels are counted."""


def output_schema(
    bundle: Bundle, settings: ScoreSettings, source: pa.Schema, id_column: str | None
) -> pa.Schema:
    """Columns of every part; the elements of lists have the name that Parquet gives them.

    Raises:
        UsageError: two columns of one name, settings that contradict each other, or too many fields for contributions.
    """
    if settings.evaluation and settings.abstain_below is not None:
        raise UsageError(
            "score.abstain_below (or target_precision) leaves records without a label, and evaluation needs all of them"
        )
    if settings.contributions:
        coalition_masks(len(bundle.specs))  # refuses too many fields before anything is scored
    all_classes = _vectors(len(bundle.classes))
    pair = pa.struct([("label", pa.string()), ("probability", pa.float32())])
    names = [("id", pa.string())] if id_column else [("source", pa.string()), ("row", pa.int64())]
    if settings.evaluation and not id_column:
        names = [("id", pa.string()), *names]
    label = (LABELS if bundle.task is MULTILABEL else "label", bundle.task.label_type)
    columns = [*names, label, ("probability", pa.float32())]
    if settings.abstain_below is not None:
        columns.append(("abstained", pa.bool_()))
    if settings.top_k:
        columns.append(("top_k", pa.list_(pa.field("element", pair))))
    if settings.modalities or settings.evaluation:
        columns.append(("modalities", pa.list_(pa.field("element", pa.string()))))
    if settings.probabilities or settings.evaluation:
        columns.append((PROBABILITIES, all_classes))
    if settings.logits:
        columns.append((LOGITS, all_classes))
    if settings.embedding:
        columns.append((EMBEDDING, _vectors(bundle.model.fusion.embedding_width)))
    if settings.embeddings:
        features = _vectors(bundle.settings.width)
        columns += [(EMBEDDING_PREFIX + spec.name, features) for spec in bundle.specs]
    if settings.contributions:
        columns.append((CONTRIBUTIONS, pa.struct([(spec.name, pa.float32()) for spec in bundle.specs])))
    if settings.evaluation:
        columns += [
            ("truth", bundle.task.label_type),
            *((name, all_classes) for name in subset_names(bundle)),
        ]
    taken = {name for name, _ in columns}
    for name in settings.passthrough:
        if name in taken:
            raise UsageError(
                f"score.passthrough: the output has a column {name!r} of its own; rename the input's"
            )
        columns.append((name, source.field(name).type))
    return pa.schema(columns)


def abstaining(bundle: Bundle, settings: ScoreSettings) -> ScoreSettings:
    """The settings with ``target_precision`` turned into the threshold that the bundle's calibration has for it.

    Raises:
        UsageError: it has none, the bundle is not calibrated or multilabel, or a threshold is given besides.
    """
    target = settings.target_precision
    if bundle.task is MULTILABEL and (target is not None or settings.abstain_below is not None):
        raise UsageError(
            "score.target_precision and score.abstain_below are for models of one class a record; of this multilabel "
            "one each class has a threshold, and a record that reaches none has no label"
        )
    if target is None:
        return settings
    if settings.abstain_below is not None:
        raise UsageError(
            f"score.target_precision={target:g} and score.abstain_below={settings.abstain_below:g} both say when to "
            "abstain: give one of the two"
        )
    if bundle.calibration is None:
        raise UsageError(
            f"score.target_precision={target:g} needs a calibrated bundle, and this one is not: run xmodal calibrate "
            "--bundle BUNDLE --data DATASET, or set score.abstain_below"
        )
    threshold = bundle.calibration.threshold(target)
    return settings.model_copy(update={"abstain_below": threshold, "target_precision": None})


def subset_names(bundle: Bundle) -> list[str]:
    """Names of the columns that evaluation adds for the fields' subsets, the empty one included."""
    return [SUBSET_PREFIX + name for name in subsets(bundle.specs, nothing=True)]


def prediction_columns(
    bundle: Bundle,
    settings: ScoreSettings,
    values: dict[str, NDArray[np.float32]],
    present: NDArray[np.bool_],
) -> dict[str, pa.Array]:
    """Every column of n records that the model's word decides.

    Args:
        bundle: names the classes and fields.
        settings: which columns.
        values: what the model says of them, by the names above.
        present: [n, M].
    """
    classes = pa.array(bundle.classes, pa.string())
    fused = values[PROBABILITIES]
    top = _top(fused, min(max(1, settings.top_k), fused.shape[1]))
    best = np.take_along_axis(fused, top, axis=1)
    abstained = np.zeros(len(best), dtype=np.bool_)
    if settings.abstain_below is not None:
        abstained = best[:, 0] < settings.abstain_below
    columns = {
        **({LABELS: _label_sets(bundle, fused)} if bundle.task is MULTILABEL else {}),
        "label": classes.take(pa.array(top[:, 0], mask=abstained)),
        "probability": pa.array(best[:, 0]),
        "abstained": pa.array(abstained),
    }
    if settings.top_k:
        pairs = [classes.take(pa.array(top.ravel())), pa.array(best.ravel())]
        counts = np.full(len(top), top.shape[1])
        columns["top_k"] = _lists(pa.StructArray.from_arrays(pairs, ["label", "probability"]), counts)
    if settings.modalities or settings.evaluation:
        names = pa.array([spec.name for spec in bundle.specs], pa.string())
        columns["modalities"] = _lists(names.take(pa.array(np.nonzero(present)[1])), present.sum(axis=1))
    if settings.embeddings:
        for place, spec in enumerate(bundle.specs):
            features = values[FEATURES][:, place]
            columns[EMBEDDING_PREFIX + spec.name] = _fixed(features, ~present[:, place])
    if settings.contributions:
        shares = shapley_values(values[COALITIONS]).astype(np.float32)
        parts = [pa.array(shares[:, m], mask=~present[:, m]) for m in range(len(bundle.specs))]
        columns[CONTRIBUTIONS] = pa.StructArray.from_arrays(parts, [spec.name for spec in bundle.specs])
    plain = {name: vectors for name, vectors in values.items() if name not in (FEATURES, COALITIONS)}
    return columns | {name: _fixed(vectors) for name, vectors in plain.items()}


def _label_sets(bundle: Bundle, probabilities: NDArray[np.float32]) -> pa.Array:
    """The classes that each of n records is said to be of."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    said = np.take_along_axis(probabilities >= bundle.class_thresholds, order, axis=1)
    return _lists(pa.array(bundle.classes, pa.string()).take(pa.array(order[said])), said.sum(axis=1))


def _top(probabilities: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Classes of the highest probabilities [n, count], falling; equal ones in the order of the classes."""
    if count * 8 > probabilities.shape[1]:
        return np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    rest = probabilities.copy()
    rows = np.arange(len(rest))
    top = np.empty((len(rest), count), dtype=np.int64)
    for place in range(count):
        top[:, place] = rest.argmax(axis=1)
        rest[rows, top[:, place]] = -np.inf
    return top


def _vectors(width: int) -> pa.DataType:
    return pa.list_(pa.field("element", pa.float32()), width)


def _lists(values: pa.Array, lengths: NDArray[np.int64]) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _fixed(values: NDArray[np.float32], missing: NDArray[np.bool_] | None = None) -> pa.Array:
    kind = _vectors(values.shape[1])
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind, mask=mask)
