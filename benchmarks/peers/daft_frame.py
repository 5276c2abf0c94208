"""Daft: decode, crop and resize as expressions; ToTensor and Normalize on each batch of 64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import daft
import numpy as np
import torch
from daft import col

from benchmarks.protocol import serve_batches

BATCH_SIZE = 64
SIZE_PX = 224
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def prepare(asked: dict[str, Any]) -> Any:
    """A lazy frame a pass; its partitions are the batches."""
    width, height = asked["size"]
    side = min(width, height)
    box = [(width - side) // 2, (height - side) // 2, side, side]

    def start_pass(ending: str, warm: bool) -> Iterator[tuple[list[str], Any]]:
        paths = asked["shards"][: asked["warm_shards"] if warm else None]
        image = col("image").decode_image(mode="RGB").crop(box).resize(SIZE_PX, SIZE_PX)
        # As images of one fixed size they are one buffer: batches without a copy a row.
        image = image.cast(daft.DataType.image("RGB", SIZE_PX, SIZE_PX))
        frame = daft.read_parquet(paths).select("id", image.alias("image")).into_batches(BATCH_SIZE)
        for partition in frame.iter_partitions():
            columns = partition.to_arrow()
            names = columns["id"].to_pylist()
            pixels = _as_numpy(columns["image"])
            if ending == "uint8":
                yield names, pixels
                continue
            tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(torch.float32).div(255)
            yield names, tensor.sub_(MEAN).div_(STD)

    return start_pass


def _as_numpy(column: Any) -> np.ndarray[Any, Any]:
    parts = [chunk.storage.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate(parts).reshape(-1, SIZE_PX, SIZE_PX, 3)


if __name__ == "__main__":
    serve_batches(prepare)
