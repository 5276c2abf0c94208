"""VGG16, ResNet-18 and Inception v3 trained for some steps on Ray, each on a field of its own."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from xmodal_dist.batch import Batch
from xmodal_dist.bundle import build_model, check_files, load_bundle, save_bundle
from xmodal_dist.dataset.schema import parse_field
from xmodal_dist.ingest.pack import PackSettings, pack
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.train.launch import launch
from xmodal_dist.train.log import read_metrics
from xmodal_dist.train.settings import TrainSettings

timm = pytest.importorskip("timm")

SIZES_PX = {"vgg16": 32, "resnet18": 32, "inception_v3": 75}
COLOURS = ("red", "green", "blue")


def _dataset(folder: Path) -> str:
    """36 noisy pictures of three colours, packed with one field a network."""
    rng = np.random.default_rng(4)
    records = []
    for index in range(36):
        pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        pixels[..., index % 3] += 120
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        (folder / f"{index}.png").write_bytes(buffer.getvalue())
        pictures = dict.fromkeys(SIZES_PX, f"{index}.png")
        records.append({**pictures, "label": COLOURS[index % 3]})
    source = folder / "records.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    fields = [parse_field(f"{name}=image") for name in SIZES_PX]
    pack(str(source), str(folder / "dataset"), fields=fields, settings=PackSettings(rows_per_row_group=16))
    return str(folder / "dataset")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_classic_networks_train_and_come_back(tmp_path: Path) -> None:
    torch.manual_seed(1)
    published = timm.create_model("resnet18").state_dict()
    save_file(published, tmp_path / "resnet18.safetensors")
    fields = {name: {"encoder": f"timm:{name}", "size_px": px} for name, px in SIZES_PX.items()}
    for name in ("vgg16", "inception_v3"):
        fields[name]["pretrained"] = False
    fields["resnet18"]["encoder_options"] = {"weights": str(tmp_path / "resnet18.safetensors")}
    result = launch(
        _dataset(tmp_path),
        str(tmp_path / "run"),
        fields=fields,
        model=ModelSettings(width=32),
        train=TrainSettings(num_workers=1, epochs=2, batch_size=12, lanes=2, learning_rate=3e-4),
        pipeline=PipelineSettings(placement="local"),
        resume=False,
    )
    losses = [line["train_loss"] for line in read_metrics(result.run) if "train_loss" in line]
    assert len(losses) == 2 and losses[-1] < losses[0]

    assert not check_files(result.bundle)
    bundle = load_bundle(result.bundle)
    torch.manual_seed(0)  # the run's
    fresh = dict(build_model(bundle.specs, len(COLOURS), bundle.settings).named_parameters())
    moved = [not torch.equal(p, fresh[name]) for name, p in bundle.model.named_parameters()]
    assert np.mean(moved) > 0.95
    backbone = bundle.model.get_submodule("_encoders.1.backbone")
    for name in ("bn1.running_mean", "layer4.1.bn2.running_var"):
        assert torch.equal(backbone.state_dict()[name], published[name])

    batch = _some(bundle.model.fields)
    prediction = bundle.predict(batch, {name: [name == f for f in SIZES_PX] for name in SIZES_PX})
    assert all(logits.isfinite().all() and logits.std() > 0 for logits in prediction.logits.values())
    save_bundle(str(tmp_path / "copy"), bundle)
    again = load_bundle(str(tmp_path / "copy")).predict(batch, {})
    torch.testing.assert_close(again.logits[""], prediction.logits[""], rtol=0, atol=0)


def _some(fields: tuple[str, ...], count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    draw = {
        name: torch.randint(0, 255, (count, px, px, 3), dtype=torch.uint8, generator=generator)
        for name, px in SIZES_PX.items()
    }
    rows = torch.arange(count)
    return Batch(
        inputs={name: {"pixels": draw[name]} for name in fields},
        present=torch.ones(count, len(fields), dtype=torch.bool),
        labels=torch.zeros(count, dtype=torch.long),
        weights=torch.ones(count),
        keys=rows,
        ids=rows,
    )
