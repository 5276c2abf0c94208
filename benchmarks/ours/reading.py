"""What all our sides share: a reader of a packed dataset in its stored order, and the stream of its steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow.parquet as pq

from xmodal_dist import runtime, storage
from xmodal_dist.dataset.manifest import Manifest, load_manifest
from xmodal_dist.dataset.schema import ID
from xmodal_dist.pipeline.chunks import Schedule
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.pipeline.reader import ChunkReader
from xmodal_dist.pipeline.stream import PipelineSettings, Readers, Step, stream_steps

__all__ = ["NUM_CPUS", "make_reader", "record_ids", "session", "steps"]

NUM_CPUS = 2
_FIT_ROWS = 256


def make_reader(
    dataset: str,
    fields: Mapping[str, Mapping[str, Any] | None],
    rows_per_step: int,
    window_rows: int,
    lanes: int = 1,
) -> ChunkReader:
    """A reader of the train split for one worker; fields are fitted on a small sample."""
    manifest = load_manifest(dataset)
    specs = fit_fields(dataset, manifest, fields, _FIT_ROWS)
    schedule = Schedule(
        manifest, seed=0, lanes=lanes, rows_per_lane=rows_per_step // lanes, window_rows=window_rows
    )
    return ChunkReader(dataset, specs, schedule)


def steps(reader: ChunkReader, settings: PipelineSettings, max_chunks: int | None = None) -> Iterator[Step]:
    """The steps of one pass in stored order, without augmentation; those of the first ``max_chunks`` if given."""
    chunks = reader.schedule.chunks("train", 0, 0, 1, augment=False)
    readers = Readers(threads=NUM_CPUS, ray_cpus=float(NUM_CPUS))
    return stream_steps(reader, islice(chunks, max_chunks), settings, readers)


def session(placement: str) -> contextlib.AbstractContextManager[None]:
    """A local Ray where the placement needs it."""
    return runtime.connect(num_cpus=NUM_CPUS) if placement == "ray" else contextlib.nullcontext()


def record_ids(dataset: str, manifest: Manifest) -> Sequence[str]:
    """The id of each position of the train split."""
    shards = [storage.join(dataset, s.path) for s in manifest.shards if s.split == "train"]
    return [name for path in shards for name in pq.read_table(path, columns=[ID])[ID].to_pylist()]
