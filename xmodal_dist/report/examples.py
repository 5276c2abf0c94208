"""The records behind an evaluation's worst errors, rendered by their modalities, within what a page may weigh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from markupsafe import escape

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import Manifest
from xmodal_dist.dataset.schema import ID, Field
from xmodal_dist.modalities import load
from xmodal_dist.pipeline.rows import read_range, read_rows
from xmodal_dist.report.evaluation import Example

__all__ = ["MAX_BYTES", "find"]

MAX_BYTES = 1_200_000
"""Most bytes of HTML of all fields of all examples together."""


class _Mistake(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def truth(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def probability(self) -> float: ...


def find(dataset: str, manifest: Manifest, split: str, mistakes: Sequence[_Mistake]) -> list[Example]:
    """One example for each mistake, in order, with every field as HTML; one that does not fit says so instead."""
    columns = [column for field in manifest.fields for column in field.columns]
    wanted = {m.id for m in mistakes}
    found: dict[str, dict[str, str | None]] = {}
    for _, shard in manifest.split_shards(split):
        path = storage.join(dataset, shard.path)
        ids = read_range(path, 0, shard.rows, [ID]).column(ID)
        rows = [row for row, record_id in enumerate(ids.to_pylist()) if record_id in wanted]
        if rows:
            table = read_rows(path, np.array(rows, dtype=np.int64), [ID, *columns])
            for record in table.to_pylist():
                found[record[ID]] = _fragments(manifest, record)
    left, examples = MAX_BYTES, []
    for m in mistakes:
        fragments = found.get(m.id, {})
        for name, fragment in fragments.items():
            size = len(fragment or "")
            if size > left:
                fragments[name] = f"<em>left out: {size / 1000:,.0f} kB would make the page too large</em>"
            else:
                left -= size
        examples.append(Example(m.id, m.truth, m.label, m.probability, fragments))
    return examples


def _fragments(manifest: Manifest, record: dict[str, object]) -> dict[str, str | None]:
    fragments: dict[str, str | None] = {}
    for field in manifest.fields:
        values = [record[column] for column in field.columns]
        absent = all(value is None for value in values)
        fragments[field.name] = None if absent else _fragment(field, values)
    return fragments


def _fragment(field: Field, values: Sequence[object]) -> str:
    """The value of a field; of one with several columns each under its name, absent ones left out."""
    modality = load(field.kind)
    if len(values) == 1:
        return modality.render(values)
    pairs = zip(field.columns, values, strict=True)
    lines = (
        f"<div><dt>{escape(name)}</dt><dd>{modality.render([value])}</dd></div>"
        for name, value in pairs
        if value is not None
    )
    return f'<dl class="columns">{"".join(lines)}</dl>'
