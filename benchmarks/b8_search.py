"""B8, what a search costs beside its trials: 30 trials of about a second in warm actors, against a plain loop.

The plain loop runs the same trainings one after the other in the same number of Ray actors, without Tune, table or
search algorithm. Start-up does not count on either side: each actor has done a trial before. Processor time is what is
compared; the wall time beside it suffers from whatever else the machine does.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
from pathlib import Path

from benchmarks.data import once
from benchmarks.harness import Figure, Options, Run, Side, figure_of, require, run_rounds

__all__ = ["run", "small_dataset"]

_ROWS, _VAL_ROWS = 256, 64
_TRIALS, _ACTORS = 32, 2
_MAX_RATIO = 1.10


def run(options: Options) -> list[Figure]:
    """Processor time of the search over that of the loop."""
    dataset = small_dataset(options.cache, options.rows or _ROWS)
    with tempfile.TemporaryDirectory(dir=options.cache) as folder:
        asked = {"dataset": dataset, "folder": folder, "trials": _TRIALS, "actors": _ACTORS}
        names = ("search", "loop")
        sides = [Side(name, "benchmarks.ours.searching", {**asked, "how": name}) for name in names]
        seen: set[str] = set()

        def check(side: Side, done: Run) -> None:
            seen.add(str(sorted(done.result["losses"])))
            require(len(seen) == 1, f"{side.name}: other losses than the sides before it")

        runs = run_rounds(sides, options, check)
    pairs = list(zip(runs["search"], runs["loop"], strict=True))
    cpu = [a.regions["trials"].cpu_s / b.regions["trials"].cpu_s for a, b in pairs]
    wall = [a.regions["trials"].wall_s / b.regions["trials"].wall_s for a, b in pairs]
    measured = _TRIALS - _ACTORS
    per_trial = statistics.median(b.regions["trials"].cpu_s for _, b in pairs) / measured
    return [
        figure_of(
            f"b8 {measured} trials in {_ACTORS} actors, search over plain loop", (runs["search"], "trials"), cpu,
            _MAX_RATIO, rows=(options.rows or _ROWS) * measured, unit="x", better="lower",
            peer=(runs["loop"], "trials"),
            notes={"wall_ratio": round(statistics.median(wall), 4), "cpu_s_per_trial": round(per_trial, 3)},
        )
    ]  # fmt: skip


def small_dataset(cache: Path, rows: int) -> str:
    """The demonstration's image, text and audio: ``rows`` records to train on, and some to validate."""
    folder = cache / f"search-{rows}"

    def make(target: Path) -> None:
        from xmodal_dist import api
        from xmodal_dist.ingest.demo import write_demo_source

        table = write_demo_source(target / "source", seed=0)
        with table.open(newline="", encoding="utf-8") as handle:
            header, *records = csv.reader(handle)
        splits = ["train"] * rows + ["val"] * _VAL_ROWS
        with table.open("w", newline="", encoding="utf-8") as handle:
            kept = [[*record, split] for record, split in zip(records, splits, strict=False)]
            csv.writer(handle).writerows([[*header, "split"], *kept])
        api.pack(str(table), str(target / "dataset"), split="split")

    once(folder, {"rows": rows, "recipe": 1}, make)
    return str(folder / "dataset")
