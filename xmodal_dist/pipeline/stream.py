"""Streams of read chunks, in order and with bounded memory: through Ray Data tasks, or threads of this process."""

from __future__ import annotations

import functools
import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from xmodal_dist.pipeline.chunks import Chunk, ChunkReader, ReadChunk
from xmodal_dist.pipeline.wire import from_table, to_table
from xmodal_dist.settings import Settings

__all__ = ["PipelineSettings", "stream_chunks"]

_CHUNKS_PER_EXECUTION = 4096
"""Ray Data plans all tasks of an execution up front; a longer stream is several executions."""


class PipelineSettings(Settings):
    """How records are read.

    Attributes:
        placement: ``ray`` reads in Ray Data tasks anywhere in the cluster; ``local`` in threads of the worker.
        window_rows: rows of a lane that are shuffled together; also bounds the memory of one read.
        prefetch_chunks: chunks read ahead of the training step, at least 1.
        decode_threads: threads that decode one chunk.
    """

    placement: Literal["ray", "local"] = "ray"
    window_rows: int = 128
    prefetch_chunks: int = 2
    decode_threads: int = 1


def stream_chunks(
    reader: ChunkReader, chunks: Iterable[Chunk], settings: PipelineSettings, reader_cpus: float
) -> Iterator[ReadChunk]:
    """Read chunks in order, ahead of the consumer.

    Args:
        reader: what reads them.
        chunks: may be long or endless; consumed lazily.
        settings: placement and read-ahead.
        reader_cpus: CPUs that this stream's Ray Data tasks may hold together; unused by ``local``.
    """
    if settings.placement == "local":
        return _stream_local(reader, chunks, settings.prefetch_chunks)
    return _stream_ray(reader, chunks, settings.prefetch_chunks, reader_cpus)


def _stream_local(reader: ChunkReader, chunks: Iterable[Chunk], prefetch: int) -> Iterator[ReadChunk]:
    source = iter(chunks)
    waiting: deque[Future[ReadChunk]] = deque()
    pool = ThreadPoolExecutor(max(prefetch, 1), thread_name_prefix="read")
    try:
        waiting.extend(pool.submit(reader.read, chunk) for chunk in islice(source, max(prefetch, 1)))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(reader.read, chunk) for chunk in islice(source, 1))
            yield done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _stream_ray(
    reader: ChunkReader, chunks: Iterable[Chunk], prefetch: int, reader_cpus: float
) -> Iterator[ReadChunk]:
    import ray

    source = iter(chunks)
    reference = ray.put(reader)
    while part := list(islice(source, _CHUNKS_PER_EXECUTION)):
        for table in _execute(reference, part, prefetch, reader_cpus):
            yield from_table(table)


def _execute(reference: Any, chunks: list[Chunk], prefetch: int, reader_cpus: float) -> Iterator[pa.Table]:
    """One Ray Data execution: one task a chunk, results in order, at most ``prefetch`` ahead in the object store."""
    import ray
    from ray.data import DataContext, Datasource, ExecutionResources, ReadTask
    from ray.data.block import BlockMetadata

    class Chunks(Datasource):
        def get_name(self) -> str:
            return "ReadChunks"

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *args: Any, **kwargs: Any) -> list[ReadTask]:
            metadata = BlockMetadata(num_rows=1, size_bytes=None, exec_stats=None, input_files=None)
            return [ReadTask(functools.partial(_read_task, reference, chunk), metadata) for chunk in chunks]

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=reader_cpus)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    concurrency = max(1, math.ceil(reader_cpus))
    dataset = ray.data.read_datasource(
        Chunks(),  # type: ignore[no-untyped-call]
        num_cpus=min(1.0, reader_cpus),
        concurrency=concurrency,
        override_num_blocks=len(chunks),
    )
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch)
    for table in batches:
        # Blocks are joined where they are small: every row is a chunk.
        for row in range(table.num_rows):
            yield table.slice(row, 1).combine_chunks()


def _read_task(reference: Any, chunk: Chunk) -> list[pa.Table]:
    return [to_table(_reader(reference).read(chunk))]


_READERS: dict[str, ChunkReader] = {}


def _reader(reference: Any) -> ChunkReader:
    """The reader behind an object reference, deserialised once in each process."""
    import ray

    key = reference.hex()
    if key not in _READERS:
        _READERS.clear()
        _READERS[key] = ray.get(reference)
    return _READERS[key]
