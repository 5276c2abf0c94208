"""Streams of decoded steps, in order and with bounded memory: from threads of this process, or Ray Data tasks.

``local`` decodes in threads of the worker: no start-up, nothing is copied between processes. ``ray`` decodes in Ray
Data tasks anywhere in the cluster. The order and content of the steps are the same, so ``auto`` may change from one to
the other while a run goes on: it begins with ``local``, and goes over to ``ray`` where the worker is seen to wait for
data and other nodes could help.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from pydantic import Field

from xmodal_dist import runtime
from xmodal_dist.batch import Records
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.pipeline.ahead import map_ahead
from xmodal_dist.pipeline.cache import UnitCache
from xmodal_dist.pipeline.chunks import Chunk
from xmodal_dist.pipeline.reader import ChunkReader, FetchedChunk, Piece
from xmodal_dist.pipeline.wire import from_table, to_table
from xmodal_dist.settings import Settings

__all__ = ["PipelineSettings", "Readers", "Step", "stream_steps"]

_PIECE_BYTES = 8 << 20
_PIECE_ROWS = 512
_MAX_PIECES_AHEAD = 32
_CHUNKS_PER_EXECUTION = 4096
"""Ray Data plans all tasks of an execution up front; a longer stream is several executions."""
_OBSERVED_S = 5.0
_STARVED_SHARE = 0.1


class PipelineSettings(Settings):
    """How records are read.

    Attributes:
        placement: ``local`` reads in threads of the worker; ``ray`` in Ray Data tasks anywhere in the cluster; ``auto``
            begins with ``local`` and goes over to ``ray`` where workers wait for data and other nodes could help.
        window_rows: rows of a lane that are shuffled together.
        prefetch_bytes: decoded records that a worker holds ahead of the training step, in bytes.
        threads: threads of a worker that decode, for ``local``; None shares the node's CPUs among its workers.
        cache_dir: a local directory on each node for decoded records; None decodes anew each time.
        cache_bytes: the most that the cache takes on a node.
    """

    placement: Literal["auto", "local", "ray"] = "auto"
    window_rows: int = Field(128, ge=1)
    prefetch_bytes: int = Field(128 << 20, ge=1)
    threads: int | None = Field(None, ge=1)
    cache_dir: str | None = None
    cache_bytes: int = Field(8 << 30, ge=1)

    def cache(self) -> UnitCache | None:
        """The cache on this node, if there is to be one."""
        return None if self.cache_dir is None else UnitCache(self.cache_dir, self.cache_bytes)


class Readers(NamedTuple):
    """What may read for one stream.

    Attributes:
        threads: threads of this process.
        ray_cpus: CPUs that Ray Data tasks may hold together.
        elsewhere: whether Ray Data tasks could run on other nodes.
    """

    threads: int
    ray_cpus: float = 1.0
    elsewhere: bool = False

    @staticmethod
    def share(settings: PipelineSettings, workers_on_node: int, ray_cpus: float, elsewhere: bool) -> Readers:
        """A worker's share of its node: the CPUs that the workers themselves leave, one thread at the least."""
        threads = settings.threads or max(1, runtime.usable_cores() // workers_on_node - 1)
        return Readers(threads, ray_cpus, elsewhere)


class Step(NamedTuple):
    """One global step of a rank; the figures are those of the piece it came with, told with its first step.

    Attributes:
        records: the rows of the step.
        rejected: records of the piece that could not be decoded.
        cpu_s: CPU-seconds of reading and decoding.
        cached_rows: records that came decoded from the cache.
        fallbacks: what took a slower decoder -> number of values.
        placement: ``local`` or ``ray``: who read it.
    """

    records: Records
    rejected: list[Rejected]
    cpu_s: float
    cached_rows: int
    fallbacks: Counter[str]
    placement: str


def stream_steps(
    reader: ChunkReader, chunks: Iterable[Chunk], settings: PipelineSettings, readers: Readers
) -> Iterator[Step]:
    """Read chunks in order, ahead of the consumer, and give their steps one by one; threads begin at once.

    Args:
        reader: what reads them.
        chunks: of one rank; may be long or endless; consumed lazily.
        settings: placement and read-ahead.
        readers: what may read.
    """
    source = iter(chunks)
    if settings.placement == "local":
        return _steps(_local(reader, source, settings, readers), "local")
    if settings.placement == "ray":
        return _steps(_ray(reader, source, settings, readers), "ray")
    meter = _Meter()

    def until_starved() -> Iterator[Chunk]:
        while not (readers.elsewhere and meter.starved) and (chunk := next(source, None)):
            yield chunk

    mine = meter.watch(_local(reader, until_starved(), settings, readers))

    def both() -> Iterator[Step]:
        yield from _steps(mine, "local")
        yield from _steps(_ray(reader, source, settings, readers), "ray")

    return both()


def _steps(pieces: Iterable[Piece], placement: str) -> Iterator[Step]:
    for piece in pieces:
        rejected, cpu_s, cached_rows, fallbacks = piece[2:]
        rows = len(piece.records) // piece.steps
        for start in range(0, len(piece.records), rows):
            records = piece.records.slice(start, start + rows)
            yield Step(records, rejected, cpu_s, cached_rows, fallbacks, placement)
            rejected, cpu_s, cached_rows, fallbacks = [], 0.0, 0, Counter[str]()


def _piece_steps(reader: ChunkReader, chunk: Chunk) -> int:
    """Steps of the pieces of a chunk: some megabytes, at least one step."""
    rows = reader.schedule.rows_per_step(chunk.rank, chunk.num_workers)
    piece_rows = min(_PIECE_ROWS, _PIECE_BYTES // reader.row_bytes)
    return max(1, min(chunk.steps, piece_rows // rows))


def _pieces_ahead(reader: ChunkReader, chunk: Chunk, settings: PipelineSettings) -> int:
    """How many pieces ``prefetch_bytes`` holds; one at the least."""
    rows = reader.schedule.rows_per_step(chunk.rank, chunk.num_workers) * _piece_steps(reader, chunk)
    return max(1, min(_MAX_PIECES_AHEAD, settings.prefetch_bytes // (rows * reader.row_bytes)))


class _Meter:
    """Share of the time that the consumer of a stream waits for it, from its first piece on."""

    def __init__(self) -> None:
        self.starved = False
        self._began_s = self._waited_s = 0.0

    def watch(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The same pieces; ``starved`` turns true when their consumer was kept waiting too much, over long enough."""
        while True:
            asked_s = time.perf_counter()
            piece = next(pieces, None)
            if piece is None:
                return
            now_s = time.perf_counter()
            if self._began_s:
                self._waited_s += now_s - asked_s
                elapsed_s = now_s - self._began_s
                self.starved |= elapsed_s > _OBSERVED_S and self._waited_s > _STARVED_SHARE * elapsed_s
            self._began_s = self._began_s or now_s
            yield piece


class _Part(NamedTuple):
    """Steps [start, stop) of a chunk whose rows are on the way."""

    rows: Future[FetchedChunk]
    start: int
    stop: int


def _local(
    reader: ChunkReader, source: Iterator[Chunk], settings: PipelineSettings, readers: Readers
) -> Iterator[Piece]:
    """Pieces from threads: one fetches chunks, one ahead of the one that others decode."""
    first = next(source, None)
    if first is None:
        return iter(())
    fetcher = ThreadPoolExecutor(1, thread_name_prefix="fetch")
    groups = ThreadPoolExecutor(readers.threads, thread_name_prefix="fetch-groups")
    decoders = ThreadPoolExecutor(readers.threads, thread_name_prefix="decode")

    def parts() -> Iterator[_Part]:
        ahead: deque[tuple[Chunk, Future[FetchedChunk]]] = deque()
        for chunk in chain([first], source, [None]):
            if chunk is not None:
                ahead.append((chunk, fetcher.submit(reader.fetch, chunk, groups)))
            while len(ahead) > (chunk is not None):
                begun, rows = ahead.popleft()
                steps = _piece_steps(reader, begun)
                for start in range(0, begun.steps, steps):
                    yield _Part(rows, start, min(start + steps, begun.steps))

    def decode(part: _Part) -> Piece:
        return reader.decode(part.rows.result(), part.start, part.stop)

    pieces = map_ahead(decode, parts(), decoders, ahead=_pieces_ahead(reader, first, settings))

    def closing() -> Iterator[Piece]:
        try:
            yield from pieces
        finally:
            for pool in (decoders, fetcher, groups):
                pool.shutdown(wait=False, cancel_futures=True)

    return closing()


def _ray(
    reader: ChunkReader, source: Iterator[Chunk], settings: PipelineSettings, readers: Readers
) -> Iterator[Piece]:
    part = list(islice(source, _CHUNKS_PER_EXECUTION))
    if not part:
        return
    import ray

    reference = ray.put(reader)
    while part:
        ahead = _pieces_ahead(reader, part[0], settings)
        for table in _execute(reference, part, ahead, settings, readers):
            yield from_table(table)
        part = list(islice(source, _CHUNKS_PER_EXECUTION))


def _execute(
    reference: Any, chunks: list[Chunk], ahead: int, settings: PipelineSettings, readers: Readers
) -> Iterator[pa.Table]:
    """One Ray Data execution: one task a chunk, results in order, a bounded number of them in the object store."""
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
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        cpu=readers.ray_cpus, object_store_memory=2.0 * settings.prefetch_bytes
    )
    context.target_max_block_size = _PIECE_BYTES
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.read_datasource(
        Chunks(),  # type: ignore[no-untyped-call]
        num_cpus=min(1.0, readers.ray_cpus),
        concurrency=max(1, math.ceil(readers.ray_cpus)),
        override_num_blocks=len(chunks),
    )
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=ahead)
    for table in batches:
        # Blocks are joined where they are small: every row is a piece.
        for row in range(table.num_rows):
            yield table.slice(row, 1).combine_chunks()


def _read_task(reference: Any, chunk: Chunk) -> Iterator[pa.Table]:
    reader = _reader(reference)
    fetched = reader.fetch(chunk)
    steps = _piece_steps(reader, chunk)
    for start in range(0, chunk.steps, steps):
        yield to_table(reader.decode(fetched, start, min(start + steps, chunk.steps)))


_READERS: dict[str, ChunkReader] = {}


def _reader(reference: Any) -> ChunkReader:
    """The reader behind an object reference, deserialised once in each process."""
    import ray

    key = reference.hex()
    if key not in _READERS:
        _READERS.clear()
        _READERS[key] = ray.get(reference)
    return _READERS[key]
