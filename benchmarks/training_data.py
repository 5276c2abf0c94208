"""A small packed dataset of image, text and audio for the training benchmarks: the demonstration's, several times."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.data import once

__all__ = ["demo_dataset"]


def demo_dataset(cache: Path, copies: int) -> tuple[str, int]:
    """The packed dataset, all of it for training, and its records.

    Args:
        cache: folder of the generated data.
        copies: how often each of the 1,797 records occurs, under different ids.
    """
    folder = cache / f"demo-{copies}"

    def make(target: Path) -> None:
        from xmodal_dist import api
        from xmodal_dist.ingest.demo import write_demo_source

        table = write_demo_source(target / "source", seed=0)
        with table.open(newline="", encoding="utf-8") as handle:
            header, *records = csv.reader(handle)
        rows = [[f"{r[0]}-{copy}", *r[1:], "train"] for copy in range(copies) for r in records]
        with table.open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([[*header, "split"], *rows])
        api.pack(str(table), str(target / "dataset"), split="split")

    once(folder, {"copies": copies, "recipe": 1}, make)
    from xmodal_dist.dataset.manifest import load_manifest

    dataset = str(folder / "dataset")
    return dataset, load_manifest(dataset).splits["train"].rows
