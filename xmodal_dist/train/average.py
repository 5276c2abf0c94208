"""An exponential moving average of the weights, for validation and the bundle (Polyak and Juditsky 1992).

After step t (from 1) the average moves by 1 - min(decay, t / (t + 9)) of the way to the weights, so that what it began
with is soon forgotten. It depends on nothing but weights and step: it is the same on any number of workers, and goes on
exactly from a checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

__all__ = ["WeightAverage"]

_WARMUP_STEPS = 9


class WeightAverage:
    """The average of a model's parameters; buffers are the model's own.

    Args:
        model: whose.
        decay: share that the average keeps of itself in a step, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._decay = decay
        self.tensors = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, global_step: int) -> None:
        """Move towards the weights that ``global_step`` (from 1) left."""
        kept = min(self._decay, global_step / (global_step + _WARMUP_STEPS))
        for name, parameter in self._parameters.items():
            self.tensors[name].lerp_(parameter, 1 - kept)

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from saved :attr:`tensors`."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights while the block runs, and its own again after."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(held)
