"""Daft: decode, crop and resize as expressions, a class with the model over batches, write_parquet."""

from __future__ import annotations

from typing import Any

import daft
import numpy as np
import pyarrow as pa
import torch
from daft import DataType, Series, col

from benchmarks.peers.scoring import BATCH_SIZE, Model, run_side

_WIDTH, _HEIGHT = 500, 375


def prepare(asked: dict[str, Any]) -> Any:
    """A query a run."""
    size_px, num_classes = asked["size_px"], len(asked["classes"])
    side = min(_WIDTH, _HEIGHT)
    box = [(_WIDTH - side) // 2, (_HEIGHT - side) // 2, side, side]
    vectors = DataType.fixed_size_list(DataType.float32(), num_classes)
    columns = {"label": DataType.string(), "probability": DataType.float32(), "probabilities": vectors}

    @daft.cls
    class Classifier:
        def __init__(self) -> None:
            self._model = Model(asked)

        @daft.method.batch(return_dtype=DataType.struct(columns), batch_size=BATCH_SIZE, unnest=True)  # type: ignore[untyped-decorator]
        def predict(self, images: Series) -> pa.Array:
            flat = images.to_arrow().storage.flatten().to_numpy()
            pixels = torch.from_numpy(np.array(flat).reshape(-1, size_px, size_px, 3))
            found = self._model.predict(self._model.normalised(pixels))
            return pa.StructArray.from_arrays(list(found.values()), list(found))

    classifier = Classifier()

    def score(paths: list[str], output: str) -> None:
        image = col("image").decode_image(mode="RGB").crop(box).resize(size_px, size_px)
        # As images of one fixed size they are one buffer: batches without a copy a row.
        image = image.cast(DataType.image("RGB", size_px, size_px))
        frame = daft.read_parquet(paths).select("id", image.alias("image"))
        frame.select("id", classifier.predict(col("image"))).write_parquet(output)

    return score


if __name__ == "__main__":
    run_side(prepare)
