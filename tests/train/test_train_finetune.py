"""Fine-tuning: who learns when and how fast, on any number of workers and over any kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from xmodal_dist.bundle import build_model, load_bundle
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import UsageError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.model.classifier import CrossModalClassifier, ModelSettings
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.train import finetune
from xmodal_dist.train.find_lr import find_learning_rate
from xmodal_dist.train.launch import TrainResult, launch
from xmodal_dist.train.log import read_metrics
from xmodal_dist.train.optim import adamw, set_learning_rate
from xmodal_dist.train.settings import TrainSettings

pytest.importorskip("transformers")

MODEL = ModelSettings(width=16)
EPOCHS = 3


def _built(dataset: str, fields: dict[str, Any]) -> tuple[CrossModalClassifier, tuple[FieldSpec, ...]]:
    manifest = load_manifest(dataset)
    specs = fit_fields(dataset, manifest, fields, 1000)
    return build_model(specs, len(manifest.classes), MODEL), specs


def test_rates_fall_with_depth_and_fresh_parts_learn_at_the_runs(tiny_dataset: str, tiny_bert: Path) -> None:
    text = {"encoder": f"hf:{tiny_bert}", "learning_rate_scale": 0.1, "layer_decay": 0.5}
    model, specs = _built(tiny_dataset, {"caption": text, "picture": {"learning_rate_scale": 2.0}})
    optimizer = adamw(model, 1.0, 0.3, finetune.rate_scales(model, specs))
    set_learning_rate(optimizer, 8.0)
    names = {p: name for name, p in model.named_parameters()}
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        expected = 8.0
        if name.startswith("_encoders.0."):
            expected = 16.0
        elif ".backbone." in name:
            expected = 0.8 if ".layer.1." in name else 0.4 if ".layer.0." in name else 0.2
        assert rate == pytest.approx(expected), name
    for group in optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.3}


@pytest.mark.parametrize(("frozen_epochs", "frozen"), [(0, [0, 0, 0]), (2, [1, 1, 0]), (None, [1, 1, 1])])
def test_a_backbone_stands_still_in_its_first_epochs(
    tiny_dataset: str, tiny_bert: Path, frozen_epochs: int | None, frozen: list[int]
) -> None:
    text = {"encoder": f"hf:{tiny_bert}", "frozen_epochs": frozen_epochs}
    model, specs = _built(tiny_dataset, {"caption": text})
    backbone: Any = model.encoders["caption"].backbone
    changes = []
    for epoch in range(3):
        changes.append(finetune.freeze(model, specs, epoch))
        assert any(p.requires_grad for p in backbone.parameters()) is not bool(frozen[epoch])
    assert changes == [bool(a) != bool(b) for a, b in zip([0, *frozen], frozen, strict=False)]


def test_weights_that_one_rank_lacks_end_the_run_on_all(tiny_dataset: str, tiny_bert: Path) -> None:
    model, specs = _built(tiny_dataset, {"caption": {"encoder": f"hf:{tiny_bert}"}})
    with pytest.raises(UsageError, match="another rank's trouble"):
        finetune.load_pretrained(model, specs, lambda mine: [mine, "another rank's trouble"])


def test_a_sweep_of_the_learning_rate_begins_where_a_run_does(tiny_dataset: str, tiny_bert: Path) -> None:
    def first_loss(**values: Any) -> float:
        text = {"encoder": f"hf:{tiny_bert}", "learning_rate_scale": 0.1, "frozen_epochs": 1, **values}
        train = TrainSettings(batch_size=24, lanes=6)
        pipeline = PipelineSettings(window_rows=8)
        found = find_learning_rate(
            tiny_dataset, fields={"caption": text}, model=MODEL, train=train, pipeline=pipeline, num_steps=20
        )
        return found.losses[0]

    assert first_loss() == first_loss(frozen_epochs=0) != first_loss(pretrained=False)


def _train(
    dataset: str,
    run: Path,
    num_workers: int,
    text: dict[str, Any],
    resume: bool = False,
    cache: Path | None = None,
    **train: Any,
) -> TrainResult:
    settings = {
        "epochs": EPOCHS,
        "batch_size": 12,
        "lanes": 2,
        "checkpoint_every_steps": 4,
        "log_every_steps": 1,
    }
    return launch(
        dataset,
        str(run),
        fields={"caption": text},
        model=MODEL,
        train=TrainSettings.model_validate({**settings, "num_workers": num_workers, **train}),
        pipeline=PipelineSettings(
            window_rows=8, placement="local", cache_dir=None if cache is None else str(cache)
        ),
        resume=resume,
    )


@contextmanager
def _cut(run: Path, keep_until: int) -> Iterator[None]:
    """Once the block is done, take the run back to its newest checkpoint at or before a step."""
    yield
    root = run / "checkpoints"
    for folder in root.iterdir():
        if int(folder.name.split("-")[1]) > keep_until:
            shutil.rmtree(folder)


def _backbone(path: Path) -> dict[str, torch.Tensor]:
    return {name: t for name, t in load_file(path).items() if ".backbone." in name}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_backbone_moves_from_its_epoch_on_and_two_workers_and_a_resume_do_what_one_does(
    tiny_dataset: str, tiny_bert: Path, tmp_path: Path
) -> None:
    text = {"encoder": f"hf:{tiny_bert}", "frozen_epochs": 1, "learning_rate_scale": 0.5, "layer_decay": 0.8}
    keep = {"keep_checkpoints": 100}
    with _cut(tmp_path / "two", keep_until=14):  # in the middle of the second epoch, of 10 steps each
        _train(tiny_dataset, tmp_path / "two", 2, text, **keep)
    two = _train(tiny_dataset, tmp_path / "two", 2, text, resume=True, **keep)
    one = _train(tiny_dataset, tmp_path / "one", 1, text, **keep)
    ours, theirs = (load_bundle(result.bundle).model.state_dict() for result in (one, two))
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []
    starts = [line for line in read_metrics(two.run) if line["event"] == "start"]
    assert starts[-1]["step"] == 12
    published = load_file(tiny_bert / "model.safetensors")
    checkpoints = {folder.name: folder for folder in (Path(one.run) / "checkpoints").iterdir()}
    at_rest = _backbone(checkpoints["step-000000010-end"] / "model.safetensors")
    assert at_rest and all(torch.equal(t, published[n.split(".backbone.")[1]]) for n, t in at_rest.items())
    moved = _backbone(checkpoints["step-000000012"] / "model.safetensors")
    held = {name for name, t in moved.items() if torch.equal(t, at_rest[name])}
    assert all(name.endswith("key.bias") for name in held)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.usefixtures("ray_session")
def test_ddp_lets_a_backbone_go_too(tiny_dataset: str, tiny_bert: Path, tmp_path: Path) -> None:
    text = {"encoder": f"hf:{tiny_bert}", "frozen_epochs": 1}
    fast, slow = (
        _train(tiny_dataset, tmp_path / order, 2, text, gradient_order=order, epochs=2, keep_checkpoints=9)
        for order in ("fast", "lanes")
    )
    ours, theirs = (
        load_file(Path(r.run) / "checkpoints/step-000000020-end/model.safetensors") for r in (fast, slow)
    )
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-3, msg=name)
    lines = [line for line in read_metrics(fast.run) if line["event"] == "epoch"]
    assert [line["records"] for line in lines] == [120, 120]


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.usefixtures("ray_session")
def test_a_backbone_at_rest_trains_from_the_cache_on_two_workers_as_on_one(
    tiny_dataset: str, tiny_bert: Path, tmp_path: Path
) -> None:
    text = {"encoder": f"hf:{tiny_bert}", "frozen_epochs": None, "token_dropout": 0.0}
    with _cut(tmp_path / "two", keep_until=14):
        _train(tiny_dataset, tmp_path / "two", 2, text, cache=tmp_path / "cache", keep_checkpoints=100)
    two = _train(tiny_dataset, tmp_path / "two", 2, text, True, tmp_path / "another", keep_checkpoints=100)
    one = _train(tiny_dataset, tmp_path / "one", 1, text, cache=tmp_path / "third")
    plain = _train(tiny_dataset, tmp_path / "plain", 1, text)
    ours, theirs, uncached = (load_bundle(r.bundle).model.state_dict() for r in (one, two, plain))
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []
    for name, tensor in uncached.items():
        torch.testing.assert_close(tensor, ours[name], rtol=0, atol=1e-4, msg=name)
    reading = [json.loads((Path(r.run) / "goodput.json").read_text())["reading"] for r in (one, plain)]
    assert reading[0]["rows_cached"] > 200 and "rows_cached" not in reading[1]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_weights_that_are_gone_are_told_at_once(tiny_dataset: str, tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        _train(tiny_dataset, tmp_path / "run", 1, {"encoder": f"hf:{folder}"})
    assert not [line for line in read_metrics(str(tmp_path / "run")) if line["event"] == "step"]
    _train(tiny_dataset, tmp_path / "fresh", 1, {"encoder": f"hf:{folder}", "pretrained": False}, epochs=1)
    assert json.loads((tmp_path / "fresh/bundle/metrics.json").read_text())
