"""The scoring job with actors that sleep: what is left is the plan, the hand-out, the commits and the account.

Request keys: ``actors``, ``units_per_actor``, ``rows_per_unit``, ``sleep_s``, and ``nodes``: Ray nodes of one CPU, or 0
for one that holds all actors. Result: ``share``, units that were committed while all actors were at work, over those
that this many sleepers could have; ``lost``, ``duplicated`` and ``failed_checks`` of the verified output.
"""

from __future__ import annotations

import importlib
import tempfile
from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.ours.nodes import several_nodes
from benchmarks.ours.sleeping_worker import SCHEMA, SleepingJob, SleepingWorker
from benchmarks.protocol import finish, measured, request
from xmodal_dist import runtime
from xmodal_dist.score import ledger
from xmodal_dist.score.formats import Identity
from xmodal_dist.score.plan import Plan
from xmodal_dist.score.pool import Pool
from xmodal_dist.score.tally import Tally
from xmodal_dist.score.verify import verify_scoring

_FILE_UNITS = 100


def main(asked: dict[str, Any]) -> None:
    """Score once."""
    feed: Any = importlib.import_module("xmodal_dist.score.feed")
    feed.ScoreWorker = SleepingWorker
    units = asked["actors"] * asked["units_per_actor"]
    plan = _plan(units, asked["rows_per_unit"])
    identity = Identity(
        bundle="none", input=plan.digest, files=len(plan.paths), units=units, rows=plan.num_rows,
        settings={}, code="benchmark",
    )  # fmt: skip
    work: defaultdict[float, list[tuple[float, float]]] = defaultdict(list)
    ray_here = runtime.connect(num_cpus=asked["actors"])
    with tempfile.TemporaryDirectory() as output, several_nodes(asked["nodes"]), ray_here:
        ledger.open_run(output, identity, plan)
        tally = Tally(plan, identity.digest)
        job = SleepingJob(output, identity.digest, asked["sleep_s"])
        pool = Pool(workers=asked["actors"])
        with measured("job"):
            for receipt in feed.score_units(job, plan, range(units), pool, 5.0):
                if receipt is not None:
                    tally.add(receipt.part)
                    seconds = receipt.seconds
                    work[seconds["worker"]].append((seconds["began"], seconds["ended"]))
            ledger.finalise(output, identity, tally, ["cat"], SCHEMA)
        found = verify_scoring(output)
    result = {"share": _share(list(work.values()), asked["sleep_s"]), "actors": len(work)}
    finish(result | {**found._asdict(), "failed_checks": len(found.failed_checks)})


def _plan(units: int, rows: int) -> Plan:
    numbers = np.arange(units)
    place = numbers % _FILE_UNITS
    file = (numbers // _FILE_UNITS).astype(np.int32)
    groups = np.stack([place, place + 1], axis=1)
    paths = tuple(f"/in/{n:05d}.parquet" for n in range(int(file[-1]) + 1))
    return Plan(paths, ("0/0",) * len(paths), file, groups.astype(np.int32), groups * rows)


def _share(workers: list[list[tuple[float, float]]], sleep_s: float) -> float:
    """Seconds slept by all workers between the last one's begin and the first one's end, over what they could have."""
    begin = max(min(began for began, _ in work) for work in workers)
    end = min(max(ended for _, ended in work) for work in workers)
    slept = sum(
        sleep_s * max(0.0, min(ended, end) - max(began, begin)) / (ended - began)
        for work in workers
        for began, ended in work
    )
    return slept / (len(workers) * (end - begin))


if __name__ == "__main__":
    main(request())
