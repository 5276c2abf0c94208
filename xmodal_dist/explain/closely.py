"""Records looked at closely: from where in a picture or sound, and from which words, a prediction comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from xmodal_dist.batch import Batch
from xmodal_dist.bundle import Bundle
from xmodal_dist.dataset.schema import ID, LABEL
from xmodal_dist.explain.contributions import by_field, sentence
from xmodal_dist.explain.maps import Heat, heat_maps
from xmodal_dist.explain.sample import Seen
from xmodal_dist.explain.tokens import attribute_tokens, merge_words
from xmodal_dist.explain.views import View, view_of
from xmodal_dist.modalities.fields import FieldSpec, transform
from xmodal_dist.shapley import shapley_values

__all__ = ["COLUMNS", "HEAT", "WORDS", "Look", "look_at", "methods"]

HEAT, WORDS, COLUMNS = "heat", "words", "columns"
"""How a field is explained: by a heat map, by its words, by the values of its columns."""

_SAMPLED = 100
_DECIMALS = 4


class Look(NamedTuple):
    """A record looked at closely: an entry of ``records`` in ``explanation.json``, and what the model sees by field."""

    record: dict[str, Any]
    views: dict[str, View]


def methods(bundle: Bundle, table: pa.Table) -> dict[str, str]:
    """How each field is explained, by name; ``table`` has the columns of fields that are no media."""
    some = table.slice(0, _SAMPLED)
    return {
        spec.name: HEAT if spec.modality.is_media else WORDS if _has_words(spec, some) else COLUMNS
        for spec in bundle.specs
    }


def _has_words(spec: FieldSpec, table: pa.Table) -> bool:
    rows = table.select(list(spec.columns)).to_pylist()
    return any(spec.modality.words(spec.settings, spec.fitted, list(row.values())) for row in rows)


def look_at(bundle: Bundle, seen: Seen, how: Mapping[str, str]) -> list[Look]:
    """Look at some records; the gradients of all of them are in memory at once.

    Args:
        bundle: the model.
        seen: the records.
        how: as :func:`methods` gives it.
    """
    batch = transform(bundle.specs, seen.batch, augment=False)
    labels = torch.from_numpy(seen.probabilities.argmax(axis=1)).to(batch.present.device)
    media = [name for name, method in how.items() if method == HEAT]
    heats = heat_maps(bundle.model, batch.inputs, batch.present, labels, media)
    contributions = by_field(shapley_values(seen.coalitions), seen.present, bundle.model.fields)
    looks = []
    for row, values in enumerate(seen.table.to_pylist()):
        label = bundle.classes[int(labels[row])]
        probability = float(seen.probabilities[row, int(labels[row])])
        told = (label, values[LABEL], probability, float(seen.coalitions[row, 0]), contributions[row])
        details: dict[str, Any] = {}
        views = {}
        for spec in (spec for m, spec in enumerate(bundle.specs) if seen.present[row, m]):
            own = {column: values[column] for column in spec.columns}
            if how[spec.name] == HEAT:
                details[spec.name] = _heat(heats.get(spec.name), row)
                views[spec.name] = view_of(
                    {k: x[row] for k, x in seen.batch.inputs[spec.name].items()},
                    {k: x[row] for k, x in batch.inputs[spec.name].items()},
                )
            elif how[spec.name] == WORDS:
                words = spec.modality.words(spec.settings, spec.fitted, list(own.values()))
                details[spec.name] = _words(
                    bundle, batch.slice(row, row + 1), int(labels[row]), spec.name, words
                )
            else:
                details[spec.name] = {"columns": {c: None if v is None else str(v) for c, v in own.items()}}
        record = dict(zip(("label", "truth", "probability", "baseline", "contributions"), told, strict=True))
        record |= {"id": values[ID], "sentence": sentence(*told), "fields": details}
        looks.append(Look(record, {name: view for name, view in views.items() if view is not None}))
    return looks


def _heat(heat: Heat | None, row: int) -> dict[str, Any]:
    """``method`` and ``map`` [T, h, w] with its greatest value scaled to 1; null where nothing speaks for the class."""
    if heat is None:
        return {"method": None, "map": None}
    peak = float(heat.maps[row].max())
    scaled = np.round(heat.maps[row] / peak, _DECIMALS).tolist() if peak > 0 else None
    return {"method": heat.method, "map": scaled}


def _words(
    bundle: Bundle, batch: Batch, label: int, field: str, words: list[tuple[str, int]]
) -> dict[str, Any]:
    """``words`` with their attributions, ``total`` and ``gap``; all null where the tokens cannot be attributed."""
    found = attribute_tokens(bundle, batch.inputs, batch.present, label, field)
    merged = None if found is None else merge_words(words, found.tokens)
    if found is None or merged is None:
        return {"words": [[word, None] for word, _ in words], "total": None, "gap": None}
    rounded = [[word, None if value is None else round(value, 6)] for word, value in merged]
    return {"words": rounded, "total": round(found.total, 6), "gap": round(found.gap, 6)}
