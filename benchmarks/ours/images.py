"""Image ingest through this project: a packed dataset, read by threads of this process or by Ray Data tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.ours.reading import make_reader, record_ids, session, steps
from benchmarks.protocol import request, serve_batches
from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities.fields import transform
from xmodal_dist.pipeline.stream import PipelineSettings

BATCH_SIZE = 64
SIZE_PX = 224
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def prepare(asked: dict[str, Any]) -> Any:
    """Passes over the dataset; ``float32`` normalises whole batches on the CPU as training does on its device."""
    settings = PipelineSettings(placement=asked["placement"])
    fields = {"image": {"size_px": SIZE_PX, "decode": asked["decode"]}}
    reader = make_reader(asked["dataset"], fields, BATCH_SIZE, settings.window_rows)
    (spec,) = reader.specs
    constants = Fitted({**spec.fitted.values, "mean": MEAN, "std": STD})
    specs = [replace(spec, fitted=constants)]
    names = record_ids(asked["dataset"], reader.schedule.manifest)

    def start_pass(ending: str, warm: bool) -> Iterator[tuple[list[str], torch.Tensor]]:
        chunks = asked["warm_rows"] // settings.window_rows if warm else None
        for step in steps(reader, settings, chunks):
            batch = step.records.to_batch()
            real = batch.ids >= 0
            ids = [names[i] for i in batch.ids[real].tolist()]
            if ending == "float32":
                batch = transform(specs, batch, augment=False)
            pixels = batch.inputs["image"]["pixels"]
            yield ids, pixels[: len(ids)]

    return start_pass


if __name__ == "__main__":
    with session(request()["placement"]):
        serve_batches(prepare)
