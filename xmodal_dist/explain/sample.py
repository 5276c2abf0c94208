"""The records of a split that are explained: chosen, read, decoded and predicted, in bounded memory."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from xmodal_dist import storage
from xmodal_dist.batch import Batch, Records
from xmodal_dist.bundle import Bundle
from xmodal_dist.dataset.manifest import Manifest
from xmodal_dist.dataset.schema import ID, LABEL
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.model.classifier import CrossModalClassifier
from xmodal_dist.pipeline.decode import decode_table
from xmodal_dist.pipeline.fetch import fetch_media
from xmodal_dist.pipeline.rows import read_range, read_rows
from xmodal_dist.shapley import coalition_masks, coalition_values

__all__ = ["Seen", "choose", "held", "noting", "predict", "read"]

_BATCH_ROWS = 64
_FETCHES = 8
_SEED = 0

_Places = list[tuple[str, NDArray[np.int64]]]
"""Files, and which of their rows."""


@dataclass(frozen=True)
class Seen:
    """Some records and what the model said of them.

    Attributes:
        table: their ids, labels and the columns of all fields; media as bytes.
        batch: the same, decoded, on the model's device.
        probabilities: [n, C] from all fields.
        coalitions: [n, 2^M], as :func:`xmodal_dist.shapley.coalition_values` gives them.
        outputs: what each field's encoder gave for the rows that it saw.
    """

    table: pa.Table
    batch: Batch
    probabilities: NDArray[np.float32]
    coalitions: NDArray[np.float32]
    outputs: dict[str, Any]

    @property
    def present(self) -> NDArray[np.bool_]:
        """[n, M] which fields the records have."""
        found: NDArray[np.bool_] = self.batch.present.cpu().numpy()
        return found


def choose(dataset: str, manifest: Manifest, split: str, max_rows: int, ids: Sequence[str]) -> _Places:
    """At most ``max_rows`` records of a split, drawn evenly, always the same; those with ``ids`` are among them.

    Raises:
        UsageError: no such split, or it lacks some of the ids.
    """
    shards = [(storage.join(dataset, s.path), s.rows) for _, s in manifest.split_shards(split)]
    starts = np.concatenate([[0], np.cumsum([rows for _, rows in shards])])
    chosen = np.arange(starts[-1])
    if len(chosen) > max_rows:
        chosen = np.random.default_rng(_SEED).choice(chosen, max_rows, replace=False)
    if ids:
        found = _positions(shards, ids)
        missing = [name for name in ids if name not in found]
        if missing:
            raise UsageError(
                f"--ids: the split {split!r} of {dataset} has no record {missing[0]!r}"
                + (f" and {len(missing) - 1} others of those given" if len(missing) > 1 else "")
            )
        chosen = np.union1d(chosen, [found[name] for name in ids])
    chosen = np.sort(chosen)
    parts = np.split(chosen, np.searchsorted(chosen, starts[1:-1]))
    pairs = zip(shards, starts, parts, strict=False)
    return [(path, part - start) for (path, _), start, part in pairs if len(part)]


def _positions(shards: Sequence[tuple[str, int]], ids: Sequence[str]) -> dict[str, int]:
    """Place in the split of each of the ids that is there."""
    wanted, found, start = set(ids), dict[str, int](), 0
    for path, rows in shards:
        names = read_range(path, 0, rows, [ID]).column(ID).to_pylist()
        found |= {name: start + row for row, name in enumerate(names) if name in wanted}
        start += rows
    return found


def read(places: _Places, specs: Sequence[FieldSpec]) -> Iterator[tuple[pa.Table, str]]:
    """The chosen records in order, a batch at a time, each with the folder in which paths of media start."""
    columns = [ID, LABEL, *(name for spec in specs for name in spec.columns)]
    for path, rows in places:
        for start in range(0, len(rows), _BATCH_ROWS):
            yield read_rows(path, rows[start : start + _BATCH_ROWS], columns), posixpath.dirname(path)


def predict(
    bundle: Bundle, table: pa.Table, base: str, device: torch.device
) -> tuple[Seen | None, list[str]]:
    """Decode and predict some records.

    Args:
        bundle: the model, on its device.
        table: the records.
        base: folder where relative paths of media start.
        device: the model's.

    Returns:
        Those that can be decoded, None if there are none; and what is wrong with each of the others.

    Raises:
        DataError: the model gives numbers that are not finite.
    """
    specs = bundle.specs
    fetched, errors = fetch_media(table, specs, base, _FETCHES)
    decoded = decode_table(fetched, specs, None)
    faults = {error.row: error for error in [*errors, *decoded.errors]}
    names = table.column(ID).to_pylist()
    rejected = [f"{names[row]!r}, field {e.field!r}: {e.error}" for row, e in sorted(faults.items())]
    kept = np.array([row for row in range(len(names)) if row not in faults], dtype=np.int64)
    if not len(kept):
        return None, rejected
    fields = {f: {k: a[kept] for k, a in arrays.items()} for f, arrays in decoded.fields.items()}
    batch = _records(fields, decoded.present[kept]).to_batch().to(device)
    outputs: dict[str, Any] = {}
    with noting(bundle.model, outputs):
        said = bundle.predict(batch, coalition_masks(len(specs)))
    probabilities = said.probabilities[""].cpu().numpy()
    if not np.isfinite(probabilities).all():
        raise DataError("the model gives numbers that are not finite: it has diverged; train it again")
    values = coalition_values(said.probabilities).cpu().numpy()
    return Seen(fetched.take(pa.array(kept)), batch, probabilities, values, outputs), rejected


def _records(fields: dict[str, Any], present: NDArray[np.bool_]) -> Records:
    rows = len(present)
    return Records(
        fields=fields,
        present=present,
        labels=np.full(rows, -1, dtype=np.int64),
        weights=np.ones(rows, dtype=np.float32),
        keys=np.zeros(rows, dtype=np.uint64),
        ids=np.arange(rows, dtype=np.int64),
    )


@contextlib.contextmanager
def noting(model: CrossModalClassifier, outputs: dict[str, Any]) -> Iterator[None]:
    """Put what each field's encoder gives into ``outputs``."""

    def note(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            outputs[name] = output

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.encoders.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def held(model: CrossModalClassifier, outputs: Mapping[str, Any]) -> Iterator[None]:
    """Let the encoders of some fields give ``outputs`` whatever they are called with: nothing is computed twice."""
    encoders = model.encoders
    for name, output in outputs.items():
        # An attribute of the instance hides the method of its class until it is deleted.
        encoders[name].forward = lambda *_, output=output, **__: output
    try:
        yield
    finally:
        for name in outputs:
            del encoders[name].forward
