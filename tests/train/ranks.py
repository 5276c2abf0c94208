"""Calibration on a split that any number of ranks share, all of them in this process."""

from __future__ import annotations

import contextlib

from xmodal_dist.bundle import Bundle
from xmodal_dist.calibrate import Calibration
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.pipeline.chunks import Schedule
from xmodal_dist.pipeline.reader import ChunkReader
from xmodal_dist.train.calibration import calibration_chunks, fit_observed, joined, observe

__all__ = ["calibrated_by_ranks"]


def calibrated_by_ranks(bundle: Bundle, dataset: str, split: str, num_workers: int) -> Calibration | None:
    """What the ranks observe, 3 rows at once, put together and fitted."""
    schedule = Schedule(load_manifest(dataset), 0, 4, 3, 6)
    reader = ChunkReader(dataset, bundle.specs, schedule)
    found = []
    for rank in range(num_workers):
        chunks = calibration_chunks(bundle, schedule, split, rank, num_workers)
        batches = [reader.read(chunk).records.to_batch() for chunk in chunks]
        found.append(observe(bundle, batches, 3, lambda _: contextlib.nullcontext()))
    return fit_observed(bundle, joined(found), "d", split)
