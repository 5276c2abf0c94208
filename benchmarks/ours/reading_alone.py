"""Reading and decoding of training records in one thread, nothing beside it: a stage of the bound.

Request keys: ``dataset``, ``batch_size``, ``epochs``. Result: ``cpu_s`` and ``records``.
"""

from __future__ import annotations

from benchmarks.protocol import finish, measured, request

__all__ = ["main"]


def main() -> None:
    """Read every chunk of some epochs, warm."""
    asked = request()
    import time

    from xmodal_dist.dataset.manifest import load_manifest
    from xmodal_dist.pipeline.chunks import Schedule
    from xmodal_dist.pipeline.fit import fit_fields
    from xmodal_dist.pipeline.reader import ChunkReader

    manifest = load_manifest(asked["dataset"])
    rows_per_lane = asked["batch_size"] // 8
    order = Schedule(manifest, seed=0, lanes=8, rows_per_lane=rows_per_lane, window_rows=128)
    reader = ChunkReader(asked["dataset"], fit_fields(asked["dataset"], manifest, {}, 20_000), order)
    for chunk in order.chunks("train", 0, 0, 1, augment=True):
        reader.read(chunk)
    records, began_s = 0, time.thread_time()
    with measured("reading"):
        for epoch in range(1, 1 + asked["epochs"]):
            for chunk in order.chunks("train", epoch, 0, 1, augment=True):
                records += int((reader.read(chunk).records.ids >= 0).sum())
    finish({"cpu_s": time.thread_time() - began_s, "records": records})


if __name__ == "__main__":
    main()
