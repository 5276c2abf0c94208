"""An ordered map that a pool works ahead of, with a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from itertools import islice
from typing import TypeVar

__all__ = ["map_ahead"]

A = TypeVar("A")
R = TypeVar("R")


def map_ahead(function: Callable[[A], R], items: Iterable[A], pool: Executor, *, ahead: int) -> Iterator[R]:
    """Results of ``function`` in the order of ``items``, computed by the pool from now on, while the consumer works.

    Args:
        function: must be thread-safe.
        items: consumed in the consumer's thread, no more than ``ahead`` beyond what it has taken.
        pool: the caller's, who shuts it down; what waits in it is cancelled when the results are closed early.
        ahead: results, finished or under way, that are held beyond the one handed over; at least 1.
    """
    jobs = (pool.submit(function, item) for item in items)
    waiting = deque(islice(jobs, ahead))

    def results() -> Iterator[R]:
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(islice(jobs, 1))
                yield result
        finally:
            for job in waiting:
                job.cancel()

    return results()
