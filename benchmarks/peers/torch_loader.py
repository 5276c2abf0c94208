"""torch DataLoader, 2 worker processes, Pillow; a map-style dataset over the rows of Parquet files."""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.protocol import serve_batches

BATCH_SIZE = 64
NUM_WORKERS = 2
SIZE_PX = 224
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def centre_square(image: Image.Image) -> Image.Image:
    """The centre square at 224 x 224, antialiased bilinear."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.crop(box).resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """As torchvision's ToTensor does."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)


class ParquetImages(Dataset[tuple[str, torch.Tensor]]):
    """Rows of Parquet files; the row group that was read last is kept, so a sequential pass reads each once."""

    def __init__(self, paths: list[str], ending: str) -> None:
        self.ending = ending
        self.paths = paths
        self.groups: list[tuple[int, int]] = []
        self.starts: list[int] = []
        rows = 0
        for file, path in enumerate(paths):
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                self.groups.append((file, group))
                self.starts.append(rows)
                rows += metadata.row_group(group).num_rows
        self.rows = rows
        self.open: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[str, torch.Tensor]:
        at = bisect.bisect_right(self.starts, row) - 1
        if self.open is None or self.open[0] != at:
            file, group = self.groups[at]
            columns = ["id", "image"]
            self.open = (at, pq.ParquetFile(self.paths[file]).read_row_group(group, columns=columns))
        table = self.open[1]
        place = row - self.starts[at]
        name, payload = table["id"][place].as_py(), table["image"][place].as_py()
        image = centre_square(Image.open(io.BytesIO(payload)).convert("RGB"))
        if self.ending == "uint8":
            return name, torch.from_numpy(np.array(image))
        return name, to_tensor(image).sub_(MEAN).div_(STD)


class Window(torch.utils.data.Sampler[int]):
    """The first ``stop`` rows in order; changed between the warm-up and the pass that counts."""

    def __init__(self, stop: int) -> None:
        self.stop = stop

    def __len__(self) -> int:
        return self.stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.stop))


def prepare(asked: dict[str, Any]) -> Any:
    """Loaders whose workers live through both passes, so that starting them does not count."""
    loaders: dict[str, tuple[DataLoader[Any], Window]] = {}

    def start_pass(ending: str, warm: bool) -> Iterator[tuple[list[str], torch.Tensor]]:
        if ending not in loaders:
            loaders.clear()
            dataset = ParquetImages(asked["shards"], ending)
            window = Window(0)
            loader = DataLoader(
                dataset,
                BATCH_SIZE,
                sampler=window,
                num_workers=NUM_WORKERS,
                persistent_workers=True,
            )
            loaders[ending] = (loader, window)
        loader, window = loaders[ending]
        window.stop = asked["warm_rows"] if warm else len(loader.dataset)  # type: ignore[arg-type]
        yield from loader

    return start_pass


if __name__ == "__main__":
    serve_batches(prepare)
