"""Predictions of held-out records under every mask, to calibrate a bundle by: from all ranks, or in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from xmodal_dist.batch import Batch
from xmodal_dist.bundle import Bundle, subsets
from xmodal_dist.calibrate import Calibration, fit_calibration
from xmodal_dist.dataset.manifest import Manifest
from xmodal_dist.errors import DataError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.chunks import Chunk, Schedule
from xmodal_dist.pipeline.reader import ChunkReader
from xmodal_dist.pipeline.stream import PipelineSettings, Readers, stream_steps
from xmodal_dist.train.gradients import pieces

__all__ = ["Observed", "calibrate_on", "calibration_chunks", "fit_observed", "joined", "observe"]

_MAX_ROWS, _FEWEST_ROWS = 20_000, 500
_MAX_LOGITS = 1 << 25
"""Of all masks and classes together, in memory at a time; a temperature needs no millions of records."""
_MAX_FIELDS = 6
"""With more, not every subset gets a temperature of its own."""
_LANES, _ROWS_PER_LANE, _WINDOW_ROWS = 8, 8, 64
_MAX_NAMED = 10


class Observed(NamedTuple):
    """What a model says of n records with a label.

    Attributes:
        ids: [n] int64.
        truth: targets of the task.
        present: [n, M] bool.
        logits: [n, S + 1, C] float32, by mask; the last one shows all fields that a record has.
    """

    ids: NDArray[np.int64]
    truth: NDArray[np.integer[Any]]
    present: NDArray[np.bool_]
    logits: NDArray[np.float32]


def calibration_chunks(
    bundle: Bundle, schedule: Schedule, split: str, rank: int = 0, num_workers: int = 1
) -> list[Chunk]:
    """A rank's share of the records to calibrate on: the split's first 20,000, of very many logits fewer."""
    logits_per_row = (len(_masks(bundle.specs)) + 1) * len(bundle.classes)
    rows = min(_MAX_ROWS, max(_FEWEST_ROWS, _MAX_LOGITS // logits_per_row))
    stop = -(-rows // (schedule.lanes * schedule.rows_per_lane))
    chunks = schedule.chunks(split, 0, rank, num_workers, augment=False)
    return list(takewhile(lambda chunk: chunk.start_step < stop, chunks))


def observe(
    bundle: Bundle,
    batches: Iterable[Batch],
    rows_at_once: int | None,
    stage: Callable[[str], contextlib.AbstractContextManager[None]],
) -> Observed:
    """Predict batches under every mask.

    Args:
        bundle: the model.
        batches: on its device.
        rows_at_once: rows that the network is given at once; None gives it whole batches. Kernels round in another way
            for other shapes, so this makes the figures the same on any number of ranks.
        stage: takes the time.
    """
    masks = _masks(bundle.specs)
    width = (len(masks) + 1, len(bundle.classes))
    found = [
        Observed(
            np.zeros(0, np.int64),
            bundle.task.no_targets(len(bundle.classes)),
            np.zeros((0, len(bundle.specs)), np.bool_),
            np.zeros((0, *width), np.float32),
        )
    ]
    for batch in batches:
        with stage("evaluation"):
            for part in pieces(slice(0, len(batch)), rows_at_once):
                rows = batch.slice(part.start, part.stop)
                said = bundle.predict(rows, masks).logits
                logits = torch.stack([said[name] for name in (*masks, "")], dim=1).cpu().numpy()
                truth = rows.labels.cpu().numpy()
                # Padding and records that could not be decoded have no label; scoring rejects what is not finite.
                kept = bundle.task.labelled(truth) & np.isfinite(logits).all(axis=(1, 2))
                values = (rows.ids.numpy(), truth, rows.present.cpu().numpy(), logits)
                found.append(Observed(*(value[kept] for value in values)))
    return joined(found)


def joined(found: Sequence[Observed]) -> Observed:
    """What several have observed, by id."""
    order = np.argsort(np.concatenate([part.ids for part in found]))
    return Observed(*(np.concatenate(parts)[order] for parts in zip(*found, strict=True)))


def fit_observed(bundle: Bundle, found: Observed, dataset: str, split: str) -> Calibration | None:
    """The calibration of a bundle from what was observed; None if that is no record at all."""
    if not len(found.ids):
        return None
    return fit_calibration(
        {name: found.logits[:, place] for place, name in enumerate(_masks(bundle.specs))},
        found.logits[:, -1],
        found.present,
        found.truth,
        [spec.name for spec in bundle.specs],
        dataset=dataset,
        split=split,
        task=bundle.task,
    )


def calibrate_on(
    bundle: Bundle, device: torch.device, dataset: str, manifest: Manifest, split: str
) -> Calibration:
    """Calibrate a bundle on a split of any dataset with its fields and classes, in this process.

    Args:
        bundle: the model, on ``device``.
        device: where it computes.
        dataset: path or URI of the dataset.
        manifest: the dataset's.
        split: its split; best one that the model was not trained on.

    Raises:
        DataError: the split has no record that can be used, or a class that the model does not know.
    """
    manifest.split_shards(split)
    bundle.require_task(manifest.task, dataset)
    rows_by_class = manifest.splits[split].classes
    unknown = sorted(name for name, rows in rows_by_class.items() if rows and name not in bundle.classes)
    if unknown:
        raise DataError(
            f"{dataset}: the split {split!r} has classes that the model was not trained on: "
            f"{', '.join(map(repr, unknown[:_MAX_NAMED]))}; calibrate on data with the model's classes"
        )
    in_its_order = manifest.model_copy(update={"classes": bundle.classes})
    schedule = Schedule(in_its_order, 0, _LANES, _ROWS_PER_LANE, _WINDOW_ROWS)
    reading = PipelineSettings(placement="local")
    steps = stream_steps(
        ChunkReader(dataset, bundle.specs, schedule),
        calibration_chunks(bundle, schedule, split),
        reading,
        Readers.share(reading, 1, 0.0, elsewhere=False),
    )
    batches = (step.records.to_batch().to(device) for step in steps)
    found = observe(bundle, batches, None, lambda _: contextlib.nullcontext())
    calibration = fit_observed(bundle, found, manifest.fingerprint, split)
    if calibration is None:
        raise DataError(f"{dataset}: no record of the split {split!r} could be decoded and predicted")
    return calibration


def _masks(specs: Sequence[FieldSpec]) -> dict[str, list[bool]]:
    """Every subset of the fields; of many fields none, each alone, all but one, and all."""
    masks = subsets(specs, nothing=True)
    if len(specs) <= _MAX_FIELDS:
        return masks
    sizes = {0, 1, len(specs) - 1, len(specs)}
    return {name: mask for name, mask in masks.items() if sum(mask) in sizes}
