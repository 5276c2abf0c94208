"""The columns of a scoring output."""

from __future__ import annotations

import pyarrow as pa

from xmodal_dist.bundle import Bundle, subsets
from xmodal_dist.errors import UsageError
from xmodal_dist.score.settings import ScoreSettings

__all__ = ["SUBSET_PREFIX", "output_schema", "subset_names"]

SUBSET_PREFIX = "subset:"


def output_schema(
    bundle: Bundle, settings: ScoreSettings, source: pa.Schema, id_column: str | None
) -> pa.Schema:
    """Columns of every part; the elements of lists have the name that Parquet gives them."""
    all_classes = pa.list_(pa.field("element", pa.float32()), len(bundle.classes))
    pair = pa.struct([("label", pa.string()), ("probability", pa.float32())])
    names = [("id", pa.string())] if id_column else [("source", pa.string()), ("row", pa.int64())]
    if settings.evaluation and not id_column:
        names = [("id", pa.string()), *names]
    columns = [
        *names,
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("top_k", pa.list_(pa.field("element", pair))),
        ("modalities", pa.list_(pa.field("element", pa.string()))),
    ]
    if settings.probabilities or settings.evaluation:
        columns.append(("probabilities", all_classes))
    if settings.evaluation:
        columns += [("truth", pa.string()), *((name, all_classes) for name in subset_names(bundle))]
    taken = {name for name, _ in columns}
    for name in settings.passthrough:
        if name in taken:
            raise UsageError(
                f"score.passthrough: the output has a column {name!r} of its own; rename the input's"
            )
        columns.append((name, source.field(name).type))
    return pa.schema(columns)


def subset_names(bundle: Bundle) -> list[str]:
    """Names of the columns that evaluation adds for the fields' subsets."""
    return [SUBSET_PREFIX + name for name in subsets(bundle.specs)]
