"""WebDataset over tar shards of the same bytes, 2 worker processes, Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from benchmarks.peers.torch_loader import BATCH_SIZE, MEAN, NUM_WORKERS, STD, centre_square, to_tensor
from benchmarks.protocol import serve_batches


class Shards(torch.utils.data.IterableDataset[dict[str, str]]):
    """Shard names: some of them in a worker's first pass, all in the later ones (the workers live on)."""

    def __init__(self, paths: list[str], warm_shards: int) -> None:
        self.paths, self.warm_shards = paths, warm_shards
        self.passes = 0

    def __iter__(self) -> Iterator[dict[str, str]]:
        self.passes += 1
        paths = self.paths[: self.warm_shards] if self.passes == 1 else self.paths
        return iter([{"url": path} for path in paths])


def prepare(asked: dict[str, Any]) -> Any:
    """Pipelines as the documentation writes them: split by worker, untar, decode, map, batch."""
    loaders: dict[str, wds.WebLoader] = {}

    def start_pass(ending: str, warm: bool) -> Iterator[tuple[list[str], torch.Tensor]]:
        if warm:
            loaders.clear()

            def convert(image: Image.Image) -> torch.Tensor:
                square = centre_square(image)
                if ending == "uint8":
                    return torch.from_numpy(np.array(square))
                return to_tensor(square).sub_(MEAN).div_(STD)

            dataset = wds.DataPipeline(
                Shards(asked["tars"], asked["warm_shards"]),
                wds.split_by_worker,
                wds.tarfile_to_samples(),
                wds.decode("pil"),
                wds.to_tuple("__key__", "jpg"),
                wds.map_tuple(None, convert),
                wds.batched(BATCH_SIZE),
            )
            loaders[ending] = wds.WebLoader(
                dataset, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True
            )
        yield from loaders[ending]

    return start_pass


if __name__ == "__main__":
    serve_batches(prepare)
