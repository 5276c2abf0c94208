"""What fields learn before training (sizes, means, vocabularies), from a bounded sample of the train split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist import runtime, storage
from xmodal_dist.batch import Arrays
from xmodal_dist.dataset.manifest import Manifest
from xmodal_dist.dataset.plan import row_group_units
from xmodal_dist.dataset.schema import Field
from xmodal_dist.errors import UsageError
from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities.fields import FieldSpec, field_settings
from xmodal_dist.pipeline.ahead import map_ahead
from xmodal_dist.pipeline.decode import decode_table
from xmodal_dist.pipeline.rows import read_range

__all__ = ["decode_sample", "fit_fields", "used_fields"]

_MAX_DECODERS = 8
_PIECE_ROWS = 64


def used_fields(manifest: Manifest, settings: Mapping[str, Mapping[str, Any] | None]) -> tuple[Field, ...]:
    """The fields of a dataset that settings do not leave out, by None."""
    return tuple(field for field in manifest.fields if settings.get(field.name, {}) is not None)


def fit_fields(
    dataset: str,
    manifest: Manifest,
    settings: Mapping[str, Mapping[str, Any] | None],
    max_rows: int,
    known: Sequence[FieldSpec] = (),
) -> tuple[FieldSpec, ...]:
    """Settle every field of a dataset for a run.

    Args:
        dataset: path or URI of the dataset.
        manifest: its manifest.
        settings: settings by field name; fields not named get the defaults of their kind, and what is None is
            left out.
        max_rows: at most this many rows (rounded up to row groups, evenly spread over the train split) are read.
        known: fields of this dataset that were fitted on as many rows; what has been learned so is not learned again.

    Raises:
        UsageError: settings for a field that the dataset does not have, or that do not fit together; no field is left.
    """
    names = [f.name for f in manifest.fields]
    for name in settings:
        if name not in names:
            raise UsageError(f"fields.{name}: the dataset has no such field; its fields: {', '.join(names)}")
    if not (used := used_fields(manifest, settings)):
        raise UsageError(f"fields: every field is null ({', '.join(names)}): nothing is left to learn from")
    specs = []
    fitted_as = {_fit_key(spec): spec.fitted for spec in known}
    for field in used:
        values = dict(settings.get(field.name) or {})
        spec = FieldSpec(field.name, field.columns, field_settings(field.name, field.kind, values), Fitted())
        if (key := _fit_key(spec)) in fitted_as:
            specs.append(replace(spec, fitted=fitted_as[key]))
            continue
        sample = _sample(dataset, manifest, field.columns, max_rows)
        try:
            fitted = spec.modality.fit(spec.settings, sample)
        except UsageError as error:
            raise UsageError(f"fields.{field.name}: {error}") from error
        specs.append(replace(spec, fitted=fitted))
    return tuple(specs)


def _fit_key(spec: FieldSpec) -> str:
    return json.dumps([spec.name, spec.columns, spec.fit_identity], sort_keys=True)


def decode_sample(
    dataset: str, manifest: Manifest, specs: Sequence[FieldSpec], max_rows: int
) -> Iterator[tuple[dict[str, Arrays], NDArray[np.bool_], NDArray[np.int64]]]:
    """Records of the train split as they are without augmentation, spread evenly over it; decoded in threads.

    Args:
        dataset: path or URI of the dataset.
        manifest: its manifest.
        specs: the fields, fitted.
        max_rows: at most this many.

    Yields:
        For some records the arrays of each field, ``present`` [n, M], and the rows that could be decoded.
    """
    table = _sample(dataset, manifest, tuple(c for spec in specs for c in spec.columns), max_rows)
    if table.num_rows > max_rows:
        table = table.take(pa.array(np.linspace(0, table.num_rows - 1, max_rows).astype(np.int64)))

    def decode(start: int) -> tuple[dict[str, Arrays], NDArray[np.bool_], NDArray[np.int64]]:
        decoded = decode_table(table.slice(start, _PIECE_ROWS), specs, None)
        broken = [error.row for error in decoded.errors]
        return decoded.fields, decoded.present, np.setdiff1d(np.arange(len(decoded.present)), broken)

    decoders = min(runtime.usable_cores(), _MAX_DECODERS)
    with ThreadPoolExecutor(decoders, thread_name_prefix="profile") as pool:
        yield from map_ahead(decode, range(0, table.num_rows, _PIECE_ROWS), pool, ahead=decoders)


def _sample(dataset: str, manifest: Manifest, columns: tuple[str, ...], max_rows: int) -> pa.Table:
    units = row_group_units(manifest, "train")
    total = sum(u.rows for u in units)
    if total > max_rows:
        keep = max(1, len(units) * max_rows // total)
        units = [units[int(i)] for i in np.unique(np.linspace(0, len(units) - 1, keep).astype(int))]
    return pa.concat_tables(
        [
            read_range(storage.join(dataset, manifest.shards[u.shard].path), u.start, u.stop, list(columns))
            for u in units
        ]
    )
