"""B6, memory: a dataset 1, 4 and 16 times as large; for reading, with a fast and a slow consumer, and for scoring.

The figure is the growth of the peak memory of the whole process tree, shared memory and object store included, from
the smallest dataset to the largest; nothing may have been spilled to disk. The smallest is several times as large as
the read-ahead, so that its buffers fill too.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.data import generate_images, packed_images, repeat_images
from benchmarks.harness import Figure, Options, Run, Side, figure_of, require, run_rounds
from benchmarks.scoring_data import make_scoring_data

__all__ = ["run"]

_ROWS = 1024
_TIMES = (1, 4, 16)
_IMAGE_SIZE = (160, 120)
_SIZE_PX = 224
_BATCH_SIZE = 64
_PREFETCH_BYTES = 32 << 20
"""A fifth of the smallest dataset when decoded."""
_CONSUMERS = {"fast consumer": 0.0, "slow consumer": 0.1}
_MAX_GROWTH_PERCENT = 5.0
_MAX_ROUNDS = 3
_SCORED_ROWS = 512
_SCORE_SETTINGS = {"unit_rows": 256, "batch_rows": 64}


def run(options: Options) -> list[Figure]:
    """Both placements, both consumers."""
    rows = options.rows or _ROWS
    images = generate_images(options.cache, rows, _IMAGE_SIZE)
    datasets = {
        times: packed_images(options.cache, repeat_images(options.cache, images, times), None)
        for times in _TIMES
    }
    common = {"size_px": _SIZE_PX, "batch_size": _BATCH_SIZE, "prefetch_bytes": _PREFETCH_BYTES}
    sides = [
        Side(
            f"{placement}, {consumer}, {times}x",
            "benchmarks.ours.paced",
            {**common, "placement": placement, "sleep_s": sleep_s, "dataset": datasets[times]},
            sample_every_s=0.05,
        )
        for placement in ("local", "ray")
        for consumer, sleep_s in _CONSUMERS.items()
        for times in _TIMES
    ]

    def check(side: Side, done: Run) -> None:
        times = int(side.name.rsplit(" ", 1)[1].removesuffix("x"))
        require(done.result["rows"] == rows * times, f"{side.name}: {done.result['rows']} rows")

    rounds = replace(options, pairs=min(options.pairs, _MAX_ROUNDS))
    runs = run_rounds(sides, rounds, check)
    return [
        *(
            _growth(f"{placement}, {consumer}", runs, "pass", rows)
            for placement in ("local", "ray")
            for consumer in _CONSUMERS
        ),
        _scoring(rounds),
    ]


def _scoring(options: Options) -> Figure:
    """Driver and workers of the scoring job."""
    images = generate_images(options.cache, _SCORED_ROWS)
    data = make_scoring_data(options.cache, images)
    with tempfile.TemporaryDirectory(dir=options.cache) as folder:

        def side(times: int) -> Side:
            links = Path(folder) / f"{times}x"
            links.mkdir()
            for copy in range(times):
                for path in data.few:
                    os.link(path, links / f"{copy}-{Path(path).name}")
            request = {
                "bundle": data.bundle, "few": data.few, "many": sorted(map(str, links.iterdir())),
                "folder": tempfile.mkdtemp(dir=folder), "settings": _SCORE_SETTINGS, "placement": "ray",
            }  # fmt: skip
            return Side(f"scoring, {times}x", "benchmarks.ours.scoring", request, sample_every_s=0.2)

        def check(side: Side, done: Run) -> None:
            done.result["spilled_mib"] = 0  # scoring puts nothing but names into the object store
            shutil.rmtree(side.request["folder"])
            Path(side.request["folder"]).mkdir()

        runs = run_rounds([side(times) for times in _TIMES], options, check)
    return _growth("scoring", runs, "many", _SCORED_ROWS)


def _growth(name: str, runs: dict[str, list[Run]], region: str, rows: int) -> Figure:
    peaks = {
        times: statistics.median(r.regions[region].peak_memory_bytes for r in runs[f"{name}, {times}x"])
        for times in _TIMES
    }
    largest = runs[f"{name}, {_TIMES[-1]}x"]
    spilled_mib = max(r.result["spilled_mib"] for times in _TIMES for r in runs[f"{name}, {times}x"])
    require(spilled_mib == 0, f"{name}: the object store has spilled {spilled_mib} MiB to disk")
    growth_percent = (peaks[_TIMES[-1]] / peaks[1] - 1) * 100
    return figure_of(
        f"b6 {name}, growth of peak memory from 1x to {_TIMES[-1]}x", (largest, region), [growth_percent],
        _MAX_GROWTH_PERCENT, rows=rows * _TIMES[-1], unit="%", better="lower",
        notes={
            "peak_mib": {f"{times}x": round(peak / 2**20, 1) for times, peak in peaks.items()},
            "spilled_mib": spilled_mib,
        },
    )  # fmt: skip
