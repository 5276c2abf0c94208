"""Batch: what travels from the readers to the model, for training, evaluation and scoring alike.

It knows nothing of modalities: a field's arrays are whatever its modality decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Arrays", "Batch", "Records", "Tensors"]

Arrays = dict[str, NDArray[np.generic]]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Records:
    """Decoded records in host memory, row-aligned, before they become tensors.

    Attributes:
        fields: per field, its decoded arrays, each with leading dimension n; rows of missing values hold zeros.
        present: [n, M] bool, columns in field order.
        labels: targets of the task (:mod:`xmodal_dist.task`): [n] int64 class index, or [n, C] int8 multi-hot; -1
            where there is no label.
        weights: [n] float32; 0 marks padding and records that could not be decoded.
        keys: [n] uint64, one per record and epoch: all randomness of a record derives from it.
        ids: [n] int64, position of the record in its split or input (shard order, then row).
    """

    fields: dict[str, Arrays]
    present: NDArray[np.bool_]
    labels: NDArray[np.integer[Any]]
    weights: NDArray[np.float32]
    keys: NDArray[np.uint64]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows, padding included."""
        return len(self.labels)

    def slice(self, start: int, stop: int) -> Records:
        """Rows [start, stop) as views."""
        part = slice(start, stop)
        return Records(
            fields={f: {name: a[part] for name, a in arrays.items()} for f, arrays in self.fields.items()},
            present=self.present[part],
            labels=self.labels[part],
            weights=self.weights[part],
            keys=self.keys[part],
            ids=self.ids[part],
        )

    def to_batch(self, tensor: Callable[[NDArray[np.generic]], torch.Tensor] | None = None) -> Batch:
        """The same rows as tensors.

        Args:
            tensor: makes a tensor of an array; None shares its memory where that is writable.
        """
        make = tensor or _tensor
        return Batch(
            inputs={f: {name: make(a) for name, a in arrays.items()} for f, arrays in self.fields.items()},
            present=make(self.present),
            labels=make(self.labels),
            weights=make(self.weights),
            keys=make(self.keys.view(np.int64)),
            ids=make(self.ids),
        )


@dataclass(frozen=True)
class Batch:
    """The tensors of one step.

    Attributes:
        inputs: per field, its tensors, each [B, ...].
        present: [B, M] bool, columns in field order.
        labels: targets of the task, [B] int64 or [B, C] int8; -1 where there is no label.
        weights: [B] float32, 0 for padding.
        keys: [B] int64, bit pattern of the record keys.
        ids: [B] int64, position of the record in its split or input.
    """

    inputs: dict[str, Tensors]
    present: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    keys: torch.Tensor
    ids: torch.Tensor

    def __len__(self) -> int:
        """Number of rows, padding included."""
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``; copies overlap with compute where memory is pinned."""
        return Batch(
            inputs={
                f: {name: t.to(device, non_blocking=True) for name, t in tensors.items()}
                for f, tensors in self.inputs.items()
            },
            present=self.present.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
            keys=self.keys.to(device, non_blocking=True),
            ids=self.ids,
        )

    def slice(self, start: int, stop: int) -> Batch:
        """Rows [start, stop) as views."""
        part = slice(start, stop)
        return Batch(
            inputs={f: {name: t[part] for name, t in tensors.items()} for f, tensors in self.inputs.items()},
            present=self.present[part],
            labels=self.labels[part],
            weights=self.weights[part],
            keys=self.keys[part],
            ids=self.ids[part],
        )

    def with_inputs(self, inputs: dict[str, Tensors]) -> Batch:
        """The same rows with other inputs (after the device-side transforms)."""
        return replace(self, inputs=inputs)


def _tensor(array: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())
