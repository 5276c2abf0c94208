"""A bundle with fresh weights for the tiny dataset, and that dataset's records as one table."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from xmodal_dist.bundle import Bundle, build_model, save_bundle
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.model.fusion import FusionKind
from xmodal_dist.pipeline.fit import fit_fields

__all__ = ["save_tiny_bundle", "tiny_bundle", "train_records"]


def tiny_bundle(dataset: str, fusion: FusionKind = "late") -> Bundle:
    """A bundle in memory, the same at every call."""
    manifest = load_manifest(dataset)
    specs = fit_fields(dataset, manifest, {}, 1000)
    settings = ModelSettings(width=16, fusion=fusion)
    torch.manual_seed(3)
    model = build_model(specs, len(manifest.classes), settings)
    return Bundle(specs, manifest.classes, settings, model, {}, {})


def save_tiny_bundle(dataset: str, path: Path, scale: float = 1.0, fusion: FusionKind = "late") -> str:
    """Save one; the fusion's weights are multiplied by ``scale``."""
    bundle = tiny_bundle(dataset, fusion)
    with torch.no_grad():
        for parameter in bundle.model.fusion.parameters():
            parameter.mul_(scale)
    save_bundle(str(path), bundle)
    return str(path)


def train_records(dataset: str) -> pa.Table:
    """The 120 records of the train split, in the order of its shards."""
    shards = [s for s in load_manifest(dataset).shards if s.split == "train"]
    return pa.concat_tables([pq.read_table(Path(dataset, s.path)) for s in shards])
