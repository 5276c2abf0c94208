"""A plain loop: torch DataLoader with 2 worker processes and Pillow, the model in the main process, one file written.

Its workers start with every run, as Ray's actors do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.peers.scoring import BATCH_SIZE, Model, run_side

_NUM_WORKERS = 2


class Images(IterableDataset[tuple[str, torch.Tensor]]):
    """Rows of Parquet files; each worker reads its share of the row groups."""

    def __init__(self, paths: list[str], model: Model) -> None:
        self._paths, self._model = paths, model

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        worker = get_worker_info()
        assert worker is not None
        number = 0
        for path in self._paths:
            file = pq.ParquetFile(path)
            for group in range(file.metadata.num_row_groups):
                number += 1
                if number % worker.num_workers == worker.id:
                    for row in file.read_row_group(group, columns=["id", "image"]).to_pylist():
                        pixels = torch.from_numpy(np.array(self._model.square(row["image"])))
                        yield row["id"], self._model.normalised(pixels)


def prepare(asked: dict[str, Any]) -> Any:
    """A loader a run."""
    model = Model(asked)

    def score(paths: list[str], output: str) -> None:
        os.makedirs(output)
        loader = DataLoader(Images(paths, model), BATCH_SIZE, num_workers=_NUM_WORKERS)
        tables = [
            pa.table({"id": pa.array(list(names)), **model.predict(pixels)}) for names, pixels in loader
        ]
        pq.write_table(pa.concat_tables(tables), os.path.join(output, "part-0.parquet"))

    return score


if __name__ == "__main__":
    run_side(prepare)
