"""Reading and decoding of training records in one thread, nothing beside it: a stage of the bound.

Request keys: ``dataset``, ``batch_size``, ``lanes``. Result: ``cpu_s`` and ``records``.
"""

from __future__ import annotations

import time

from benchmarks.ours.reading import make_reader
from benchmarks.protocol import finish, measured, request
from xmodal_dist.pipeline.stream import PipelineSettings

__all__ = ["main"]


def main() -> None:
    """Read every chunk of an epoch twice, the first time to warm up."""
    asked = request()
    window_rows = PipelineSettings().window_rows
    reader = make_reader(asked["dataset"], {}, asked["batch_size"], window_rows, lanes=asked["lanes"])
    for chunk in reader.schedule.chunks("train", 0, 0, 1, augment=True):
        reader.read(chunk)
    records, began_s = 0, time.thread_time()
    with measured("reading"):
        for chunk in reader.schedule.chunks("train", 1, 0, 1, augment=True):
            records += int((reader.read(chunk).records.ids >= 0).sum())
    finish({"cpu_s": time.thread_time() - began_s, "records": records})


if __name__ == "__main__":
    main()
