"""Modalities of third parties, named by dotted paths: one that decodes to clips, one to nothing that can be used."""

from __future__ import annotations

from typing import Any

import numpy as np

from xmodal_dist.modalities import Decoded, FieldSettings, Fitted, Modality

__all__ = ["MODALITY", "ClipModality"]


class ClipSettings(FieldSettings):
    kind: str = "tests.baselines.lidar"


class ClipModality(Modality[ClipSettings]):
    """Three pictures of one grey value each; one measure."""

    kind = "tests.baselines.lidar"
    settings = ClipSettings

    def infer(self, name: str, sample: Any) -> float:
        return 0.0

    def check(self, values: Any) -> None:
        pass

    def fit(self, settings: ClipSettings, table: Any) -> Fitted:
        return Fitted()

    def decode(self, settings: ClipSettings, fitted: Fitted, columns: Any, keys: Any) -> Decoded:
        values = np.array([v or 0 for v in columns[0].to_pylist()], dtype=np.uint8)
        frames = np.broadcast_to(values[:, None, None, None, None], (len(values), 3, 8, 8, 3))
        return Decoded({"frames": frames.copy()}, columns[0].is_valid().to_numpy(zero_copy_only=False))

    def measures(self, settings: ClipSettings, fitted: Fitted, arrays: Any) -> dict[str, Any]:
        return {"points": np.where(arrays["frames"][:, 0, 0, 0, 0] > 9, np.nan, 2.0).astype(np.float32)}

    def transform(self, settings: ClipSettings, fitted: Fitted, tensors: Any, keys: Any) -> Any:
        return tensors

    def encoder(self, settings: ClipSettings, fitted: Fitted, width: int) -> Any:
        raise NotImplementedError

    def render(self, values: Any) -> str:
        return ""


MODALITY = ClipModality()
