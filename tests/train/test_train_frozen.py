"""A backbone that stands still sees each record once, and training goes as if it had run in every step."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from xmodal_dist.batch import Tensors
from xmodal_dist.bundle import load_bundle
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.encoders import Architecture, Prepared, Pretrained, Request
from xmodal_dist.modalities.text import TextSettings
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.decode import decode_table, unpack_table
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.settings import Settings
from xmodal_dist.train.checkpoint import load_weights
from xmodal_dist.train.frozen import FrozenField, with_frozen
from xmodal_dist.train.job import TrainJob
from xmodal_dist.train.loop import Worker
from xmodal_dist.train.place import Place
from xmodal_dist.train.settings import TrainSettings

EPOCHS = 3
AT_REST = {"encoder": "published:words", "frozen_epochs": None, "token_dropout": 0.0}


class Words(Pretrained):
    """A published network of texts: the mean of its words, mixed; it counts the rows that it sees."""

    rows = 0

    def __init__(self, request: Request) -> None:
        backbone = nn.Sequential(
            nn.EmbeddingBag(request.values["vocab_size"], 24, padding_idx=0), nn.Linear(24, 24)
        )
        super().__init__(backbone, [list(backbone.parameters())], 24)
        self.project = nn.Linear(24, request.width)

    def load_weights(self) -> None:
        made = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.backbone.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=made))

    def see(self, tensors: Tensors) -> torch.Tensor:
        Words.rows += len(tensors["ids"])
        seen: torch.Tensor = self.backbone(tensors["ids"]).tanh()
        return seen

    def head(self, seen: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        features: torch.Tensor = self.project(seen)
        return features


@pytest.fixture(autouse=True)
def _published(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Architecture("published", "words", Settings, Words, lambda *_: Prepared())
    monkeypatch.setattr(TextSettings, "architectures", (*TextSettings.architectures, words))
    monkeypatch.setattr(Words, "rows", 0)


def _job(dataset: str, run: Path, cache: Path | None, caption: dict[str, Any], **fields: Any) -> TrainJob:
    manifest = load_manifest(dataset)
    specs = fit_fields(dataset, manifest, {"caption": caption, **fields}, 1000)
    train = TrainSettings(epochs=EPOCHS, batch_size=12, lanes=2, keep_checkpoints=9)
    pipeline = PipelineSettings(
        window_rows=8, placement="local", cache_dir=None if cache is None else str(cache)
    )
    model = ModelSettings(width=16)
    return TrainJob(str(run), dataset, manifest, specs, model, train, pipeline, 1.0, 0.0, False, time.time())


def _trained(job: TrainJob) -> dict[str, torch.Tensor]:
    """The weights after the last epoch."""
    worker = Worker(job, Place.alone(use_gpu=False))
    worker.run()
    last = sorted(path.name for path in Path(job.checkpoints).iterdir())[-1]
    load_weights(job.checkpoints, last, worker.model, worker.device)
    return dict(worker.model.state_dict())


def _captions(job: TrainJob) -> int:
    return sum(s.rows - s.missing["caption"] for name, s in job.manifest.splits.items() if name != "test")


@pytest.mark.usefixtures("ray_session")
def test_each_record_is_seen_once_whatever_trains(tiny_dataset: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    job = _job(tiny_dataset, tmp_path / "one", cache, AT_REST)
    ours, once = _trained(job), Words.rows
    assert once == _captions(job)
    again = _trained(_job(tiny_dataset, tmp_path / "two", cache, AT_REST))
    other = _job(tiny_dataset, tmp_path / "three", cache, AT_REST, picture={"size_px": 12})
    _trained(other)
    assert Words.rows == once, "neither another trial nor other settings of another field let it run again"
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.items())

    plain = _trained(_job(tiny_dataset, tmp_path / "plain", None, AT_REST))
    assert Words.rows > once + EPOCHS * once
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, ours[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.usefixtures("ray_session")
def test_the_bundle_is_whole_and_says_of_raw_records_what_training_saw(
    tiny_dataset: str, tmp_path: Path
) -> None:
    job = _job(tiny_dataset, tmp_path / "run", tmp_path / "cache", AT_REST)
    worker = Worker(job, Place.alone(use_gpu=False))
    worker.run()
    bundle = load_bundle(job.bundle)
    (chunk, *_) = job.schedule.chunks("val", 0, 0, 1, augment=False)
    raw, seen = (job.reader(specs).read(chunk).records.to_batch() for specs in (job.specs, worker.specs))
    assert list(raw.inputs["caption"]) == ["ids"] and list(seen.inputs["caption"]) == ["seen"]
    with_text = {"caption": [False, True, False]}
    ours, theirs = (bundle.predict(batch, with_text).logits for batch in (raw, seen))
    for name, logits in ours.items():
        torch.testing.assert_close(logits, theirs[name], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("ray_session")
def test_a_run_goes_on_exactly_without_the_cache_that_it_began_with(
    tiny_dataset: str, tmp_path: Path
) -> None:
    whole = _trained(_job(tiny_dataset, tmp_path / "whole", tmp_path / "cache", AT_REST))
    job = _job(tiny_dataset, tmp_path / "cut", tmp_path / "cache", AT_REST)
    worker = Worker(job, Place.alone(use_gpu=False))
    worker.epoch()
    worker.close()
    shutil.rmtree(tmp_path / "cache")
    rest = _trained(job)
    assert all(torch.equal(tensor, rest[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("caption", "frozen"),
    [
        ({}, True),
        ({"frozen_epochs": EPOCHS}, True),
        ({"frozen_epochs": EPOCHS - 1}, False),
        ({"pretrained": False}, False),
        ({"token_dropout": 0.1}, False),
        ({"encoder": "bag"}, False),
    ],
)
def test_only_what_is_the_same_in_every_step_is_kept(
    tiny_dataset: str, tmp_path: Path, caption: dict[str, Any], frozen: bool
) -> None:
    job = _job(tiny_dataset, tmp_path / "run", tmp_path, {**AT_REST, **caption})
    fields = with_frozen(job, job.new_model())
    assert [isinstance(spec, FrozenField) for spec in fields] == [False, frozen, False]


def test_other_weights_have_other_entries(tiny_dataset: str, tmp_path: Path) -> None:
    job = _job(tiny_dataset, tmp_path / "run", tmp_path, AT_REST)
    one, two = job.new_model(), job.new_model()
    names = [with_frozen(job, model)[1].unpack_identity for model in (one, two, one)]
    assert names[0] == names[2] != names[1] != job.specs[1].unpack_identity


def test_missing_and_broken_values_stay_what_they_are(tiny_dataset: str, tmp_path: Path) -> None:
    job = _job(tiny_dataset, tmp_path / "run", tmp_path, AT_REST)
    model = job.new_model()
    (frozen,) = with_frozen(job, model)[1:2]
    table = pa.table({"caption": pa.array([b"sunset apple", None, b"\xff", b" ", b"sky"] * 30, pa.binary())})
    plain = decode_table(table, job.specs[1:2], None)
    seen = decode_table(unpack_table(table, [frozen]), [frozen], np.arange(table.num_rows, dtype=np.uint64))
    assert np.array_equal(seen.present, plain.present)
    assert [(e.row, e.error.args) for e in seen.errors] == [(e.row, e.error.args) for e in plain.errors] != []
    assert not seen.fields["caption"]["seen"][~plain.present[:, 0]].any()
    nothing = decode_table(unpack_table(table.slice(1, 1), [frozen]), [frozen], None)
    assert not nothing.present.any() and not nothing.errors
