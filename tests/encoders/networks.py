"""Small data of every kind, and small published networks made here, as the tests of encoders share them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import torch
from PIL import Image
from torch import nn

from xmodal_dist.batch import Tensors
from xmodal_dist.modalities import Fitted, load
from xmodal_dist.modalities.base import FieldSettings, Modality
from xmodal_dist.randomness import derive_keys

WIDTH = 16
NUM_ROWS = 6


def picture(seed: int, side_px: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (side_px, side_px, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sound(seed: int, rate_hz: int = 8000) -> bytes:
    rng = np.random.default_rng(seed)
    at = np.arange(round((0.2 + 0.05 * seed) * rate_hz)) / rate_hz
    wave = 0.3 * np.sin(2 * np.pi * (200 + 100 * seed) * at) + rng.normal(0, 0.02, len(at))
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate_hz, format="WAV")
    return buffer.getvalue()


def table(kind: str) -> pa.Table:
    """Records of one kind, the last one missing."""
    rows = range(NUM_ROWS - 1)
    if kind == "image":
        return pa.table({"c": pa.array([*map(picture, rows), None], pa.binary())})
    if kind == "audio":
        return pa.table({"c": pa.array([*map(sound, rows), None], pa.binary())})
    numbers, colours = [1.5, None, -3.0, 0.2, 8.0, None], ["red", "blue", None, "red", "blue", None]
    return pa.table(
        {"size": pa.array(numbers), "colour": pa.array(colours), "other": pa.array(numbers[::-1])}
    )


@dataclass(frozen=True)
class Field:
    """A field of one kind with its settings, fitted to :func:`table`."""

    modality: Modality[Any]
    settings: FieldSettings
    fitted: Fitted

    @classmethod
    def of(cls, kind: str, **values: Any) -> Field:
        modality = load(kind)
        settings = modality.settings.model_validate({"kind": kind, **values})
        return cls(modality, settings, modality.fit(settings, table(kind)))

    def restored(self) -> Field:
        """The same field from what a bundle holds of it."""
        stored = json.loads(
            json.dumps([self.settings.model_dump(mode="json"), self.fitted.values, self.fitted.files])
        )
        settings = self.modality.settings.model_validate(stored[0])
        return Field(self.modality, settings, Fitted(stored[1], stored[2]))

    def encoder(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.modality.encoder(self.settings, self.fitted, WIDTH)

    def tensors(self, train: bool = False) -> Tensors:
        """The records, decoded and transformed."""
        keys = derive_keys(7, 0, np.zeros(NUM_ROWS, np.int64), np.arange(NUM_ROWS)) if train else None
        columns = [column.combine_chunks() for column in table(self.modality.kind).columns]
        decoded = self.modality.decode(self.settings, self.fitted, columns, keys)
        tensors = {name: torch.from_numpy(array) for name, array in decoded.arrays.items()}
        own = None if keys is None else torch.from_numpy(keys.view(np.int64))
        return self.modality.transform(self.settings, self.fitted, tensors, own)


def publish(folder: Path, network: str, processor: Mapping[str, Any] | None = None, **sizes: Any) -> str:
    """Save a tiny network of transformers with random weights as its authors would; returns the folder."""
    import transformers

    torch.manual_seed(3)
    made = getattr(transformers, f"{network}Config")(**_CONFIGS[network] | sizes)
    getattr(transformers, f"{network}Model")(made).save_pretrained(folder)
    own = processor if processor is not None else _PROCESSORS[network]
    (folder / "preprocessor_config.json").write_text(json.dumps(own))
    return str(folder)


_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_CONVOLUTIONS = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2)}
_WAVE = _SMALL | _CONVOLUTIONS | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_CONFIGS: dict[str, dict[str, Any]] = {
    "ViT": _SMALL | {"image_size": 32, "patch_size": 8},
    "ConvNext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    "AST": _SMALL
    | {"max_length": 64, "num_mel_bins": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
    "Wav2Vec2": _WAVE,
    "Hubert": _WAVE | {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
}
_IMAGES = {
    "size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
    "do_center_crop": False,
}
_SAMPLES = {"sampling_rate": 16_000, "do_normalize": True}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": _IMAGES,
    "ConvNext": _IMAGES | {"size": {"shortest_edge": 32}},
    "ResNet": _IMAGES,
    "AST": {"sampling_rate": 16_000, "num_mel_bins": 32, "max_length": 64, "mean": -4.27, "std": 4.57},
    "Wav2Vec2": _SAMPLES | {"return_attention_mask": False},
    "Hubert": _SAMPLES | {"return_attention_mask": True},
}
