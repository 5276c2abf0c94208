"""The data of the scoring benchmark: images in files of a second of work, and one small model in two forms."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.data import CLASSES, ImageData, once
from benchmarks.harness import say
from xmodal_dist.batch import Batch
from xmodal_dist.bundle import Bundle, build_model, save_bundle
from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities.fields import FieldSpec, field_settings, transform
from xmodal_dist.model.classifier import CrossModalClassifier, ModelSettings
from xmodal_dist.pipeline.decode import decode_table
from xmodal_dist.score.decoder import records_of

__all__ = ["MEAN", "SIZE_PX", "STD", "ScoringData", "make_scoring_data"]

SIZE_PX = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NUM_FILES = 2
_COPIES = 8


class ScoringData(NamedTuple):
    """What all sides score with what.

    Attributes:
        few: files of all records once.
        many: files of all records several times, the same bytes under other names.
        copies: how often each record occurs in ``many``.
        bundle: the model as this project saves it.
        program: the same model traced by ``torch.jit``: float32 [B, 3, size, size], normalised, to probabilities.
    """

    few: list[str]
    many: list[str]
    copies: int
    bundle: str
    program: str


def make_scoring_data(cache: Path, images: ImageData) -> ScoringData:
    """Make what is not there yet."""
    folder = cache / f"{images.folder.name}-scoring"
    once(
        folder,
        {"version": 1, "copies": _COPIES, "of": images.digest},
        lambda target: _write_files(target, images),
    )
    model = cache / f"{images.folder.name}-scoring-model"
    once(
        model,
        {"version": 5, "size_px": SIZE_PX, "of": images.digest},
        lambda target: _write_model(target, images),
    )
    few, many = ([str(p) for p in sorted((folder / name).iterdir())] for name in ("few", "many"))
    return ScoringData(few, many, _COPIES, str(model / "bundle"), str(model / "program.pt"))


def _write_files(target: Path, images: ImageData) -> None:
    say(f"writing {_NUM_FILES} files to score in {target}")
    table = pa.concat_tables([pq.read_table(path, columns=["id", "image"]) for path in images.shards])
    rows = images.rows // _NUM_FILES
    (target / "few").mkdir()
    (target / "many").mkdir()
    for number in range(_NUM_FILES):
        path = target / "few" / f"part-{number}.parquet"
        part = table.slice(number * rows, rows)
        pq.write_table(part, path, row_group_size=64, compression="none", use_dictionary=False)
        for copy in range(_COPIES):
            os.link(path, target / "many" / f"part-{copy}-{number}.parquet")


def _write_model(target: Path, images: ImageData) -> None:
    """A classifier of images with weights that are fresh, and the same at every call."""

    class Program(torch.nn.Module):
        def __init__(self, model: CrossModalClassifier) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            present = torch.ones(pixels.shape[0], 1, dtype=torch.bool)
            logits: torch.Tensor = self.model({"image": {"pixels": pixels}}, present).fused
            return logits.softmax(dim=-1)

    fitted = Fitted({"size_px": SIZE_PX, "mean": list(MEAN), "std": list(STD)})
    image = field_settings("image", "benchmarks.ours.patches", {"size_px": SIZE_PX})
    spec = FieldSpec("image", ("image",), image, fitted)
    settings = ModelSettings(width=64)
    torch.manual_seed(0)
    model = build_model([spec], len(CLASSES), settings).eval()
    with torch.no_grad():
        batch = transform([spec], _first_records(images, spec), augment=False)
        (head,) = (module for module in model.heads if isinstance(module, torch.nn.Linear))
        logits = head(model.encode(batch.inputs, batch.present)[:, 0])
        # Fresh weights say much the same of all images: spread what they say over the classes.
        head.weight.div_(logits.std(dim=0)[:, None])
        head.bias.sub_(logits.mean(dim=0)).div_(logits.std(dim=0))
    save_bundle(str(target / "bundle"), Bundle((spec,), CLASSES, settings, model, {}, {}))
    # Traced, not exported: loading an exported program costs seconds, which would count as the peers' start.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.jit.trace(  # type: ignore[no-untyped-call]
            Program(model).eval(), torch.zeros(2, 3, SIZE_PX, SIZE_PX)
        )
        torch.jit.freeze(program).save(target / "program.pt")


def _first_records(images: ImageData, spec: FieldSpec) -> Batch:
    table = pq.read_table(images.shards[0], columns=["image"]).slice(0, 64)
    decoded = decode_table(table, [spec], None)
    return records_of(decoded.fields, decoded.present).to_batch()
