"""Tiny rows through this project and an identity model: what is left is the framework."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from benchmarks.ours.reading import make_reader, session, steps
from benchmarks.protocol import finish, measured, request
from xmodal_dist.pipeline.stream import PipelineSettings


def main(asked: dict[str, Any]) -> None:
    """For each number of steps in a unit: a warm pass, then some measured ones."""
    model = torch.nn.Identity()
    settings = PipelineSettings(placement=asked["placement"])
    rows: dict[str, int] = {}
    digests = [hashlib.sha256() for _ in range(4)]
    for steps_per_unit in asked["steps_per_unit"]:
        window_rows = steps_per_unit * asked["batch_size"]
        reader = make_reader(asked["dataset"], {}, asked["batch_size"], window_rows)
        digests = [hashlib.sha256() for _ in range(4)]
        for step in steps(reader, settings):
            (fields,) = step.records.fields.values()
            arrays = (fields["numeric"], fields["missing"], fields["categorical"], step.records.labels)
            for digest, array in zip(digests, arrays, strict=True):
                digest.update(np.ascontiguousarray(array[step.records.ids >= 0]).tobytes())
        region = str(steps_per_unit)
        rows[region] = 0
        with measured(region):
            for _ in range(asked["passes"]):
                for step in steps(reader, settings):
                    batch = step.records.to_batch()
                    model(batch.inputs)
                    rows[region] += int((batch.ids >= 0).sum())
    finish({"rows": rows, "digest": [d.hexdigest()[:16] for d in digests]})


if __name__ == "__main__":
    with session(request()["placement"]):
        main(request())
