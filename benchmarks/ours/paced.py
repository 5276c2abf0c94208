"""Reads a packed dataset of images for a consumer that takes as it comes, or sleeps at every step."""

from __future__ import annotations

import re
import time
from typing import Any

from benchmarks.ours.reading import make_reader, session, steps
from benchmarks.protocol import finish, measured, request
from xmodal_dist.pipeline.stream import PipelineSettings


def main(asked: dict[str, Any]) -> None:
    """Warm up on the first units, then one measured pass."""
    settings = PipelineSettings(placement=asked["placement"], prefetch_bytes=asked["prefetch_bytes"])
    fields = {"image": {"size_px": asked["size_px"]}}
    reader = make_reader(asked["dataset"], fields, asked["batch_size"], settings.window_rows)
    for _ in steps(reader, settings, max_chunks=4):
        pass
    rows = 0
    with measured("pass"):
        for step in steps(reader, settings):
            rows += int((step.records.to_batch().ids >= 0).sum())
            time.sleep(asked["sleep_s"])
    finish({"rows": rows, "spilled_mib": _spilled_mib() if asked["placement"] == "ray" else 0})


def _spilled_mib() -> int:
    """What ``ray memory --stats-only`` tells of this session: MiB that the object store has written to disk so far."""
    import ray
    from ray._private.internal_api import memory_summary

    address = ray.get_runtime_context().gcs_address
    told = memory_summary(address, stats_only=True)  # type: ignore[no-untyped-call]
    found = re.search(r"Spilled (\d+) MiB", told)
    return int(found.group(1)) if found else 0


if __name__ == "__main__":
    with session(request()["placement"]):
        main(request())
