"""Ray Data, ``naive`` or ``tuned`` by the request's key ``style``.

naive: as first written. read_parquet, map a function that decodes a row, map_batches of an actor with the model,
write_parquet.

tuned: no operator by rows; actors take batches of encoded images, decode them in two threads each, normalise and
predict them as one batch. Half a CPU for each of two actors leaves one for reading and writing.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy

from benchmarks.peers.scoring import BATCH_SIZE, Model, run_side

_TUNED_BATCH_SIZE = 128


class Decoder:
    """A function of a row for ``map``; made once a process."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked
        self._model: Model | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with normalised pixels instead of the encoded image."""
        self._model = self._model or Model(self._asked)
        pixels = torch.from_numpy(self._model.square(row["image"]).copy())
        return {"id": row["id"], "pixels": self._model.normalised(pixels).numpy()}


class NaiveActor:
    """Predicts batches of normalised pixels."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._model = Model(asked)

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> pa.Table:
        """The output of one batch."""
        pixels = torch.from_numpy(np.ascontiguousarray(batch["pixels"]))
        return pa.table({"id": pa.array(batch["id"]), **self._model.predict(pixels)})


class TunedActor:
    """Decodes and predicts batches of encoded images."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._model = Model(asked)
        self._pool = ThreadPoolExecutor(2)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The output of one batch."""
        squares = list(self._pool.map(self._model.square, batch["image"].to_pylist()))
        pixels = self._model.normalised(torch.from_numpy(np.stack(squares)))
        return pa.table({"id": batch["id"], **self._model.predict(pixels)})


def prepare(asked: dict[str, Any]) -> Any:
    """One Ray for all runs."""
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def score(paths: list[str], output: str) -> None:
        dataset = ray.data.read_parquet(paths, columns=["id", "image"])
        if asked["style"] == "naive":
            dataset = dataset.map(Decoder(asked)).map_batches(
                NaiveActor,
                fn_constructor_args=(asked,),
                batch_size=BATCH_SIZE,
                compute=ActorPoolStrategy(size=1),
                num_cpus=1,
            )
        else:
            dataset = dataset.map_batches(
                TunedActor,
                fn_constructor_args=(asked,),
                batch_size=_TUNED_BATCH_SIZE,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=2),
                num_cpus=0.5,
            )
        dataset.write_parquet(output)

    return score


if __name__ == "__main__":
    run_side(prepare)
