"""Where in a picture, a sound or a clip a prediction comes from: Grad-CAM, or saliency where nothing is convolved.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): channels of the last convolutional feature map are weighted by the
mean gradient of the class's score, added, and what speaks against the class is cut off. The map is found while the
encoder runs, by what its modules are, so that any convolutional network will do: it is the last output with the
channels of the last convolution and more than one place, which includes norms, activations, residual sums and pooling
that follow. Without convolutions, saliency (Simonyan et al. 2014, arXiv:1312.6034): size of the input's gradient,
greatest over the channels.

The score is that of the fused logits before softmax, less the mean over classes, which softmax does not see.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from xmodal_dist.batch import Tensors
from xmodal_dist.model.classifier import CrossModalClassifier, encoded_rows

__all__ = ["GRAD_CAM", "SALIENCY", "Heat", "heat_maps"]

GRAD_CAM, SALIENCY = "grad-cam", "saliency"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MAX_SIDE = 32
_MAX_CHANNELS = 4


@dataclass(frozen=True)
class Heat:
    """Heat maps of one field of B records.

    Attributes:
        method: :data:`GRAD_CAM` or :data:`SALIENCY`.
        maps: [B, T, h, w] float32, at least 0: T frames of a clip, 1 of a picture; h is 1 for waves.
    """

    method: str
    maps: NDArray[np.float32]


@dataclass
class _Watch:
    """Finds the last convolutional feature map of an encoder while it runs."""

    channels: int = 0
    maps: torch.Tensor | None = None
    handles: list[Any] = field(default_factory=list)

    def see(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor) or output.dim() < 3:
            return
        if isinstance(module, _CONVOLUTIONS):
            self.channels = output.shape[1]
        if self.channels == output.shape[1] and output.shape[2:].numel() > 1:
            self.maps = output


def heat_maps(
    model: CrossModalClassifier,
    inputs: dict[str, Tensors],
    present: torch.Tensor,
    labels: torch.Tensor,
    fields: Sequence[str],
) -> dict[str, Heat]:
    """Heat maps of some fields for the class of each record, in one pass there and back.

    Args:
        model: in evaluation mode.
        inputs: transformed tensors of all fields.
        present: [B, M].
        labels: [B] int64, the classes to explain.
        fields: which fields.

    Returns:
        By field; fields that no gradient reaches are left out.
    """
    leaves = {name: _leaf(inputs[name]) for name in fields}
    traced = inputs | {name: inputs[name] | leaf for name, leaf in leaves.items() if leaf}
    watches = {name: _Watch() for name in fields}
    with contextlib.ExitStack() as stack, torch.enable_grad():
        for name, watch in watches.items():
            for module in model.encoders[name].modules():
                stack.callback(module.register_forward_hook(watch.see).remove)
        fused = model(traced, present).fused.float()
    score = (fused - fused.mean(dim=1, keepdim=True)).gather(1, labels.unsqueeze(1)).sum()
    places: dict[str, torch.Tensor] = {}
    for name in fields:
        maps = watches[name].maps
        if maps is not None and maps.requires_grad:
            places[name] = maps
        elif leaves[name]:
            places[name] = next(iter(leaves[name].values()))
    if not places or not score.requires_grad:
        return {}
    gradients = torch.autograd.grad(score, list(places.values()), allow_unused=True)
    found = {}
    for (name, place), gradient in zip(places.items(), gradients, strict=True):
        if gradient is not None and place is watches[name].maps:
            shown = encoded_rows(present[:, model.fields.index(name)])
            found[name] = Heat(
                GRAD_CAM, _spread(_grad_cam(place.detach(), gradient, len(shown)), shown, len(labels))
            )
        elif gradient is not None:
            found[name] = Heat(SALIENCY, _saliency(gradient))
    return found


def _leaf(tensors: Tensors) -> Tensors:
    """The largest tensor of real numbers, as one that gets a gradient; none if there is none."""
    real = {name: x for name, x in tensors.items() if x.is_floating_point() and x.dim() > 1}
    if not real:
        return {}
    name = max(real, key=lambda key: real[key].numel())
    return {name: real[name].detach().clone().requires_grad_()}


def _grad_cam(maps: torch.Tensor, gradient: torch.Tensor, rows: int) -> NDArray[np.float32]:
    """[N, C, ...] to [rows, T, h, w]: N is the rows, or the frames of all of them."""
    spatial = tuple(range(2, maps.dim()))
    weights = gradient.mean(dim=spatial, keepdim=True)
    heat = (weights * maps).sum(dim=1).relu()
    heat = heat.unsqueeze(1) if heat.dim() == 2 else heat
    return _pooled(heat.reshape(rows, -1, *heat.shape[-2:]))


def _spread(maps: NDArray[np.float32], rows: torch.Tensor, num_rows: int) -> NDArray[np.float32]:
    """Maps of ``rows`` among ``num_rows``, those of the others zero."""
    spread = np.zeros((num_rows, *maps.shape[1:]), np.float32)
    spread[rows.cpu().numpy()] = maps
    return spread


def _saliency(gradient: torch.Tensor) -> NDArray[np.float32]:
    """Gradient of waves [B, N], pictures [B, C, H, W] or clips with a few channels first or second, to [B, T, h, w]."""
    size = gradient.abs()
    if size.dim() == 2:
        size = size.unsqueeze(1)
    if size.dim() == 5:
        size = size.amax(dim=1 if size.shape[1] <= _MAX_CHANNELS else 2)
    else:
        size = size.amax(dim=1, keepdim=True)
    return _pooled(size if size.dim() == 4 else size.unsqueeze(2))


def _pooled(heat: torch.Tensor) -> NDArray[np.float32]:
    """At most ``_MAX_SIDE`` to a side, which is finer than an eye can use."""
    height, width = (min(side, _MAX_SIDE) for side in heat.shape[-2:])
    pooled: NDArray[np.float32] = F.adaptive_avg_pool2d(heat.float(), (height, width)).cpu().numpy()
    return pooled
