"""Where a worker's units are decoded: in its own threads, or in Ray tasks anywhere in the cluster."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from xmodal_dist.errors import DecoderDiedError, XmodalError
from xmodal_dist.pipeline.ahead import map_ahead
from xmodal_dist.score.decoder import DecodedBatch, Decoder
from xmodal_dist.score.plan import Unit

__all__ = ["Decoding", "TaskDecoding", "ThreadDecoding"]

_TASK_RETRIES = 3
_BATCHES_AHEAD = 2
"""Of each task, in the object store; it waits while they are not fetched."""


class Decoding(Protocol):
    """Decodes units for any number of threads."""

    def batches(self, unit: Unit, batch_rows: int) -> Iterator[DecodedBatch]:
        """The rows of a unit in order, at most ``batch_rows`` at a time, decoded ahead of the consumer.

        Raises:
            DataError: the unit's file is damaged or was replaced.
            DecoderDiedError: only where decoders are processes of their own.
        """


class ThreadDecoding:
    """In threads of this process, which all units share."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._pool = ThreadPoolExecutor(decoder.threads, thread_name_prefix="decode")

    def batches(self, unit: Unit, batch_rows: int) -> Iterator[DecodedBatch]:
        """See :class:`Decoding`."""
        decode = functools.partial(self._decoder.decode, unit)
        rows = self._decoder.read(unit, batch_rows)
        return map_ahead(decode, rows, self._pool, ahead=self._decoder.threads + 1)


class TaskDecoding:
    """In Ray tasks, one a unit; what they decode crosses the object store once and is not copied out of it.

    Args:
        decoder: goes to every task.
        num_cpus: logical CPUs of a task.
    """

    def __init__(self, decoder: Decoder, num_cpus: float) -> None:
        import ray

        self._decoder = ray.put(decoder)
        self._task = ray.remote(_decode_unit).options(
            name="decode",
            num_cpus=num_cpus,
            num_returns="streaming",
            max_retries=_TASK_RETRIES,
            _generator_backpressure_num_objects=_BATCHES_AHEAD,
        )

    def batches(self, unit: Unit, batch_rows: int) -> Iterator[DecodedBatch]:
        """See :class:`Decoding`."""
        import ray

        stream: Any = self._task.remote(self._decoder, unit, batch_rows)
        try:
            for reference in stream:
                yield ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, XmodalError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise DecoderDiedError(str(error)) from error
        finally:
            ray.cancel(stream)


def _decode_unit(decoder: Decoder, unit: Unit, batch_rows: int) -> Iterator[DecodedBatch]:
    began_s = time.process_time()
    for rows in decoder.read(unit, batch_rows):
        decoded = decoder.decode(unit, rows)
        now_s = time.process_time()
        yield decoded._replace(cpu_s=now_s - began_s)
        began_s = now_s
