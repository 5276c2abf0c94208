"""Fields whose backbone stands still run it once a record: the cache keeps what it saw, for all epochs and trials.

That is so where the features are a function of the record alone: the backbone never learns in the run, and training
sees values as evaluation does. They are computed in fixed pieces of row groups, so that they are the same to the bit
whoever computes them, for whatever batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from xmodal_dist.encoders import SEEN, EncoderSettings, Pretrained
from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities import Decoded
from xmodal_dist.modalities.base import decode_each
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.model.classifier import CrossModalClassifier
from xmodal_dist.settings import Settings
from xmodal_dist.train.job import TrainJob

__all__ = ["FrozenField", "with_frozen"]

_PIECE_ROWS = 64
_FEATURES, _ERROR = b"f", b"e"


@dataclass(frozen=True)
class FrozenField(FieldSpec):
    """A field whose unpacked values are the features of its backbone, or what was wrong with a value.

    Attributes:
        encoder: the encoder of the field, with the weights that it keeps, on the device of the training.
        weights: hex SHA-256 of the backbone's.
    """

    encoder: Pretrained
    weights: str

    cached_apart: ClassVar[bool] = True

    @property
    def unpack_identity(self) -> list[Any]:
        """Those of the values, and which network saw them where."""
        settings: Settings = self.settings
        assert isinstance(settings, EncoderSettings)
        device = next(self.encoder.parameters()).device.type
        network = [settings.encoder, settings.encoder_options, self.weights, device]
        return [super().unpack_identity, network]

    def unpack(self, columns: Sequence[pa.Array]) -> list[pa.Array]:
        """In the first column for each record the features, the error, or null; nothing in the others."""
        rows = len(columns[0])
        pieces = ([c.slice(at, _PIECE_ROWS) for c in columns] for at in range(0, rows, _PIECE_ROWS))
        values = [value for piece in pieces for value in self._values(piece)]
        return [
            pa.array(values, pa.large_binary()),
            *(pa.nulls(rows, pa.large_binary()) for _ in columns[1:]),
        ]

    def decode(self, columns: Sequence[pa.Array], keys: NDArray[np.uint64] | None) -> Decoded:
        """``seen`` [n, F] float32 of what :meth:`unpack` gives; with keys too."""
        seen = np.zeros((len(columns[0]), self.encoder.num_features), dtype=np.float32)

        def decode_one(row: int, payload: memoryview) -> None:
            if payload[:1] == _ERROR:
                raise DecodeError(*json.loads(bytes(payload[1:])))
            seen[row] = np.frombuffer(payload[1:], np.float32)

        present, errors = decode_each(columns[0], decode_one)
        return Decoded({SEEN: seen}, present, errors)

    def _values(self, columns: Sequence[pa.Array]) -> Iterator[bytes | None]:
        decoded = super().decode(columns, None)
        features = iter(self._see(decoded))
        for row, present in enumerate(decoded.present):
            if row in decoded.errors:
                yield _ERROR + json.dumps(decoded.errors[row].args).encode()
            else:
                yield _FEATURES + next(features).tobytes() if present else None

    @torch.no_grad()
    def _see(self, decoded: Decoded) -> NDArray[np.float32]:
        """[p, F] of the p rows that are present."""
        if not decoded.present.any():
            return np.zeros((0, self.encoder.num_features), dtype=np.float32)
        device = next(self.encoder.parameters()).device
        tensors = {
            name: torch.from_numpy(a[decoded.present]).to(device) for name, a in decoded.arrays.items()
        }
        seen = self.encoder.see(self.modality.transform(self.settings, self.fitted, tensors, None))
        found: NDArray[np.float32] = seen.float().cpu().numpy()
        return found


def with_frozen(job: TrainJob, model: CrossModalClassifier) -> tuple[FieldSpec, ...]:
    """The fields as a worker of a run reads them: those with a frozen backbone as what it saw, if there is a cache.

    Not where Ray Data tasks read, which have no encoder.

    Args:
        job: the run.
        model: with its weights, on the device of the training.
    """
    if job.pipeline.cache_dir is None or job.pipeline.placement == "ray":
        return job.specs
    encoders = model.encoders
    return tuple(_frozen(spec, encoders[spec.name], job.train.epochs) or spec for spec in job.specs)


def _frozen(spec: FieldSpec, encoder: torch.nn.Module, epochs: int) -> FrozenField | None:
    settings: Settings = spec.settings
    if not (isinstance(encoder, Pretrained) and isinstance(settings, EncoderSettings)):
        return None
    if not settings.is_frozen_at(epochs - 1) or spec.modality.augments(spec.settings):
        return None
    return FrozenField(
        spec.name, spec.columns, spec.settings, spec.fitted, encoder, _digest(encoder.backbone)
    )


def _digest(network: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
