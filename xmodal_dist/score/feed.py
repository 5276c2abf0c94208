"""Units through a pool of actors on Ray Data, receipts back.

Ray Data carries only the names of units and receipts, so no retry, kill or split of its own can lose or double a
record. Units travel in groups: one a task would cost the driver more than some units take.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence

import pyarrow as pa

from xmodal_dist.errors import RunAgainError, XmodalError
from xmodal_dist.score.context import Job
from xmodal_dist.score.formats import Receipt
from xmodal_dist.score.plan import Plan, Unit, group_sizes
from xmodal_dist.score.pool import Pool
from xmodal_dist.score.worker import ScoreWorker, receipt_of

__all__ = ["score_units"]

_RECEIPT_BYTES = 1024


def score_units(
    job: Job, plan: Plan, numbers: Sequence[int], pool: Pool, tick_s: float
) -> Iterator[Receipt | None]:
    """Receipts as units are committed, in any order; None after every ``tick_s`` seconds without one.

    Raises:
        XmodalError: what a worker raised.
        RunAgainError: workers were lost beyond what Ray repairs.
    """
    received: queue.Queue[Receipt | Exception | None] = queue.Queue()

    def run() -> None:
        try:
            for receipt in _receipts(job, plan, numbers, pool):
                received.put(receipt)
            received.put(None)
        except Exception as error:
            received.put(error)

    # In a thread of its own, so that the caller sees time pass while a worker hangs.
    threading.Thread(target=run, name="ray-data", daemon=True).start()
    while True:
        try:
            found = received.get(timeout=tick_s)
        except queue.Empty:
            yield None
            continue
        if found is None:
            return
        if isinstance(found, Exception):
            raise found
        yield found


def _receipts(job: Job, plan: Plan, numbers: Sequence[int], pool: Pool) -> Iterator[Receipt]:
    """Through one Ray Data execution."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = (
        _RECEIPT_BYTES  # receipts travel when they are there, not when there are many
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    receipts = ray.data.from_arrow(_groups(plan, numbers, pool.workers * pool.lanes)).map_batches(
        ScoreWorker,
        fn_constructor_args=(job, pool),
        batch_size=1,  # with GPUs Ray wants a number; more than one would join groups
        batch_format="pyarrow",
        num_cpus=pool.worker_cpus,
        num_gpus=pool.worker_gpus or None,
        compute=ActorPoolStrategy(
            size=pool.workers,
            max_concurrent_calls_per_actor=pool.lanes,
            enable_true_multi_threading=pool.lanes > 1,
        ),
    )
    try:
        for table in receipts.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(table, pa.Table)
            yield from map(receipt_of, table.to_pylist())
    except ray.exceptions.RayTaskError as error:
        message = (
            f"a worker failed, and would again: {error}\nWhat is committed stays; mend the cause and go on"
        )
        raise XmodalError(message) from error
    except ray.exceptions.RayError as error:
        raise RunAgainError(f"workers were lost: {error}\nThe same command goes on from here") from error


def _groups(plan: Plan, numbers: Sequence[int], num_lanes: int) -> list[pa.Table]:
    groups, start = [], 0
    for size in group_sizes(len(numbers), num_lanes):
        units = [plan.unit(number) for number in numbers[start : start + size]]
        columns = zip(*units, strict=True)
        groups.append(pa.table(dict(zip(Unit._fields, map(list, columns), strict=True))))
        start += size
    return groups
