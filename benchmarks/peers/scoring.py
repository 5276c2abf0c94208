"""What the peers of the scoring benchmark share: the model as a program, Pillow's decoding, and the output's columns.

Request keys: ``program``, ``size_px``, ``mean``, ``std``, ``classes``; ``few`` and ``many``, files to read;
``folder``, where outputs are written. Result: ``few`` and ``many``, the folders of the outputs.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from benchmarks.protocol import finish, measured, request

BATCH_SIZE = 64


class Model:
    """The traced model and its preprocessing."""

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.size_px: int = asked["size_px"]
        self.classes = pa.array(asked["classes"])
        self.mean, self.std = (torch.tensor(asked[name]).view(3, 1, 1) for name in ("mean", "std"))
        self.program = torch.jit.load(asked["program"])  # type: ignore[no-untyped-call]

    def square(self, payload: bytes) -> np.ndarray[Any, Any]:
        """The centre square [size, size, 3], antialiased bilinear, uint8."""
        image = Image.open(io.BytesIO(payload)).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return np.asarray(image.crop(box).resize((self.size_px, self.size_px), Image.Resampling.BILINEAR))

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """[..., size, size, 3] uint8 to [..., 3, size, size] float32, as ToTensor and Normalize do."""
        return pixels.movedim(-1, -3).contiguous().float().div_(255).sub_(self.mean).div_(self.std)

    @torch.inference_mode()
    def predict(self, pixels: torch.Tensor) -> dict[str, pa.Array]:
        """The output's columns of normalised pixels [B, 3, size, size]."""
        probabilities = self.program(pixels)
        best, place = probabilities.max(dim=1)
        flat = pa.array(probabilities.numpy().ravel())
        return {
            "label": self.classes.take(pa.array(place.numpy())),
            "probability": pa.array(best.numpy()),
            "probabilities": pa.FixedSizeListArray.from_arrays(flat, probabilities.shape[1]),
        }


def run_side(prepare: Callable[[dict[str, Any]], Callable[[list[str], str], None]]) -> None:
    """Score few records to warm up, then measure a run over few and one over many.

    Args:
        prepare: makes, from the request, a function that scores files into a folder.
    """
    asked = request()
    score = prepare(asked)
    score(asked["few"], os.path.join(asked["folder"], "warm"))
    result = {}
    for name in ("few", "many"):
        result[name] = os.path.join(asked["folder"], name)
        with measured(name):
            score(asked[name], result[name])
    finish(result)
