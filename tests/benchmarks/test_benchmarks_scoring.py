"""The scoring benchmark: both forms of its model say the same; what a record costs and what a run costs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import b4_scoring
from benchmarks.data import ImageData, generate_images
from benchmarks.harness import Measurement, Options, Run, Side, run_side
from benchmarks.peers.scoring import Model
from benchmarks.scoring_data import MEAN, SIZE_PX, STD, ScoringData, make_scoring_data

ROWS = 16


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return generate_images(tmp_path_factory.mktemp("cache"), ROWS, (300, 240))


@pytest.fixture(scope="module")
def data(images: ImageData) -> ScoringData:
    return make_scoring_data(images.folder.parent, images)


def test_files_hold_every_record_and_many_hold_them_as_copies(data: ScoringData, images: ImageData) -> None:
    few = [name for path in data.few for name in pq.read_table(path, columns=["id"])["id"].to_pylist()]
    many = [name for path in data.many for name in pq.read_table(path, columns=["id"])["id"].to_pylist()]
    assert len(set(few)) == len(few) == ROWS and sorted(many) == sorted(few * data.copies)
    assert make_scoring_data(images.folder.parent, images) == data


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
def test_our_side_and_the_traced_program_say_the_same(
    data: ScoringData, images: ImageData, tmp_path: Path
) -> None:
    settings = {"top_k": 0, "modalities": False, "probabilities": True}
    request = {"bundle": data.bundle, "few": data.few, "many": data.many, "folder": str(tmp_path)}
    request |= {"settings": settings, "placement": "local"}
    options = Options(tmp_path, Path(sys.executable), timeout_s=60)
    run = run_side(Side("local", "benchmarks.ours.scoring", request), options)
    ours = b4_scoring._probabilities(run.result["many"], ROWS * data.copies)
    asked = {"program": data.program, "size_px": SIZE_PX, "mean": MEAN, "std": STD, "classes": list("abcd")}
    model = Model(asked)
    for path in images.shards:
        for row in pq.read_table(path, columns=["id", "image"]).to_pylist():
            pixels = model.normalised(torch.from_numpy(model.square(row["image"]).copy()))
            found = model.predict(pixels.unsqueeze(0))["probabilities"][0].as_py()
            assert np.allclose(found, ours[row["id"]], atol=0.02)


def test_a_run_costs_what_is_left_when_the_records_are_paid_for() -> None:
    regions = {"few": Measurement(5.0, 1.0, 1), "many": Measurement(19.0, 1.0, 1)}
    runs = [Run(regions, {}, {})]
    slopes = b4_scoring._slopes(runs, rows=1000, copies=8)
    assert slopes == [pytest.approx(2.0)]
    assert b4_scoring._cost_of_a_run(runs, slopes, 1000) == 3.0
