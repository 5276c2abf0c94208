"""What a finished scoring run says about the next one, from the files that it left.

The rate is that of its steady part: the events tell every five seconds how many rows are done. Time before the first of
them is start-up.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from xmodal_dist import storage
from xmodal_dist.errors import UsageError
from xmodal_dist.score import ledger
from xmodal_dist.score.events import read_events

__all__ = ["Measured", "measure"]

_FEW_POINTS = 3


class Measured(NamedTuple):
    """What a run measured; its fields are those of :class:`xmodal_dist.plan.settings.Assumptions`."""

    seconds_per_record: float
    start_s: float
    unit_rows: int
    input_bytes_per_record: float
    output_bytes_per_record: float


def measure(output: str) -> Measured:
    """Measure a finished scoring run.

    Raises:
        UsageError: no scoring run, one that is not finished, or one whose events are gone.
    """
    identity = ledger.load_identity(output)
    manifest = ledger.load_manifest(output)
    if manifest is None:
        raise UsageError(f"--from {output!r} is not finished: give its `xmodal score` command again first")
    plan = ledger.load_plan(output, identity)
    seconds, start_s = _pace(_longest(output, read_events(output)), output)
    files = ledger.load_files(output, manifest)
    data = files.filter(pc.equal(files["role"], "data"))
    return Measured(
        seconds_per_record=seconds,
        start_s=start_s,
        unit_rows=round(plan.num_rows / len(plan)),
        input_bytes_per_record=plan.num_bytes / plan.num_rows,
        output_bytes_per_record=(pc.sum(data["bytes"]).as_py() or 0) / max(1, manifest.rows_ok),
    )


def _longest(output: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of the driver that ran to its end and saw most rows done."""
    rows: Counter[str] = Counter()
    begun = {e["driver"]: e for e in events if e["event"] in ("run_started", "resumed")}
    for event in events:
        if event["event"] == "finished" and event["driver"] in begun:
            rows[event["driver"]] = event["rows_in"] - begun[event["driver"]].get("rows_done", 0)
    if not rows or max(rows.values()) <= 0:
        raise UsageError(
            f"--from {output!r}: {storage.join(output, '_events')} tells of no command that scored and finished; "
            "name another run, or give --seconds-per-record"
        )
    driver = rows.most_common(1)[0][0]
    return [event for event in events if event["driver"] == driver]


def _pace(events: list[dict[str, Any]], output: str) -> tuple[float, float]:
    """Seconds a record of one worker, and seconds until the first unit was begun."""
    begin = next(e for e in events if e["event"] in ("run_started", "resumed"))
    end = next(e for e in events if e["event"] == "finished")
    workers, before = begin["workers"], begin.get("rows_done", 0)
    told = [e for e in events if e["event"] == "progress"]
    times = np.array([_seconds(begin, e) for e in told])
    rows = np.array([e["rows_done"] - before for e in told], dtype=np.float64)
    total, wall_s = end["rows_in"] - before, _seconds(begin, end)
    steady = (rows > 0) & (rows < total)
    if steady.sum() >= _FEW_POINTS:
        rate = float(np.polyfit(times[steady], rows[steady], 1)[0])
        start_s = float((times[steady] - rows[steady] / rate).mean())
    else:  # a short run: what the first silence leaves
        silent = times[rows == 0]
        start_s = float(silent[-1]) if len(silent) else 0.0
        rate = total / max(wall_s - start_s, 1e-3)
    if rate <= 0 or workers < 1:
        raise UsageError(f"--from {output!r}: its events show no steady rate; give --seconds-per-record")
    return workers / rate, max(0.0, start_s)


def _seconds(begin: dict[str, Any], event: dict[str, Any]) -> float:
    return (datetime.fromisoformat(event["ts"]) - datetime.fromisoformat(begin["ts"])).total_seconds()
