"""The data of the scoring benchmark: images in files of a second of work, and one small model in two forms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from benchmarks.data import CLASSES, ImageData, once
from benchmarks.harness import say

__all__ = ["MEAN", "SIZE_PX", "STD", "ScoringData", "make_scoring_data"]

SIZE_PX = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NUM_FILES = 2
_COPIES = 4


class ScoringData(NamedTuple):
    """What all sides score with what.

    Attributes:
        few: files of all records once.
        many: files of all records several times, the same bytes under other names.
        copies: how often each record occurs in ``many``.
        bundle: the model as this project saves it.
        program: the same model as a ``torch.export`` program: float32 [B, 3, size, size], normalised, to probabilities.
    """

    few: list[str]
    many: list[str]
    copies: int
    bundle: str
    program: str


def make_scoring_data(cache: Path, images: ImageData) -> ScoringData:
    """Make what is not there yet."""
    folder = cache / f"{images.folder.name}-scoring"
    once(folder, {"version": 1, "of": images.digest}, lambda target: _write_files(target, images))
    model = cache / f"scoring-model-{SIZE_PX}"
    once(model, {"version": 2, "size_px": SIZE_PX, "classes": list(CLASSES)}, _write_model)
    few, many = ([str(p) for p in sorted((folder / name).iterdir())] for name in ("few", "many"))
    return ScoringData(few, many, _COPIES, str(model / "bundle"), str(model / "program.pt2"))


def _write_files(target: Path, images: ImageData) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

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


def _write_model(target: Path) -> None:
    """A classifier of images with fresh weights, the same at every call."""
    import torch

    from xmodal_dist.bundle import Bundle, build_model, save_bundle
    from xmodal_dist.modalities import Fitted
    from xmodal_dist.modalities.fields import FieldSpec, field_settings
    from xmodal_dist.model.classifier import CrossModalClassifier, ModelSettings

    class Program(torch.nn.Module):
        def __init__(self, model: CrossModalClassifier) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            present = torch.ones(pixels.shape[0], 1, dtype=torch.bool)
            logits: torch.Tensor = self.model({"image": {"pixels": pixels}}, present).fused
            return logits.softmax(dim=-1)

    fitted = Fitted({"size_px": SIZE_PX, "mean": list(MEAN), "std": list(STD)})
    spec = FieldSpec("image", ("image",), field_settings("image", "image", {"size_px": SIZE_PX}), fitted)
    settings = ModelSettings(width=64)
    torch.manual_seed(0)
    model = build_model([spec], len(CLASSES), settings).eval()
    with torch.no_grad():
        for parameter in model.heads.parameters():  # or fresh weights say much the same of all images
            parameter.mul_(8)
    save_bundle(str(target / "bundle"), Bundle((spec,), CLASSES, settings, model, {}, {}))
    rows = torch.export.Dim("rows", min=1, max=4096)
    example = (torch.zeros(2, 3, SIZE_PX, SIZE_PX),)
    with torch.no_grad():
        program = torch.export.export(Program(model), example, dynamic_shapes=({0: rows},))
    torch.export.save(program, target / "program.pt2")
