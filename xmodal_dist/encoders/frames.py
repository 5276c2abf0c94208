"""Encoders of clips, [B, F, 3, H, W] in ``pixels`` of which each row's first ``length`` [B] frames are there.

Every image encoder is one of clips by the same name: it takes each frame for an image, and pooling over time makes one
row of the frames' features. Its options are those of the image encoder and ``pooling``.

Legend of tensor shapes: B rows, F frames, D width, A heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import create_model
from torch import nn

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders.base import Architecture, Request
from xmodal_dist.encoders.pixels import IMAGE_ENCODERS
from xmodal_dist.settings import Settings

__all__ = ["VIDEO_ENCODERS", "AttentionPooling", "FrameEncoder", "GruPooling", "MeanPooling", "of_frames"]

_NUM_HEADS = 4
_LOG_SHARPNESS = 3.0  # a head's neighbour, a third of the clip away, begins with about a tenth of its weight


class _PoolingOptions(Settings):
    """What clips add to the options of an image encoder."""

    pooling: Literal["mean", "gru", "attention"] = "attention"
    """How the frames' features become one row's: their mean, which does not see their order; the last state of a gated
    recurrent unit that goes through them; or attention of heads that look at different moments."""


class MeanPooling(nn.Module):
    """The mean of the frames that are there."""

    def forward(self, features: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        """[B, D] from ``features`` [B, F, D] and ``shown`` [B, F] bool, at least one a row."""
        weights = shown.to(features.dtype).unsqueeze(-1)
        return (features * weights).sum(dim=1) / weights.sum(dim=1)


class GruPooling(nn.Module):
    """The state of a gated recurrent unit (Cho et al. 2014) after the last frame that is there.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.cell = nn.GRUCell(width, width)

    def forward(self, features: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        """[B, D] from ``features`` [B, F, D] and ``shown`` [B, F] bool, at least one a row."""
        features = self.norm(features)
        state = features.new_zeros(features.shape[0], features.shape[2])
        for frame, is_shown in zip(features.unbind(dim=1), shown.unbind(dim=1), strict=True):
            state = torch.where(is_shown.unsqueeze(-1), self.cell(frame, state), state)
        return state


class AttentionPooling(nn.Module):
    """Attention of several heads over the frames, each by what a frame shows and by when it is shown.

    A head's score of a frame is a learned query on its features (Lee et al. 2019, "Set Transformer", section 3.2) less
    the squared distance from a learned moment of the clip (as the temporal attention filters of Piergiovanni et al.
    2017, "Learning latent subevents in activity videos"). The moments begin evenly spread from the first frame to the
    last, so that from the start the heads tell what came before from what came after.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = next(heads for heads in range(_NUM_HEADS, 0, -1) if width % heads == 0)
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, self.num_heads, bias=False)
        self.moments = nn.Parameter(torch.linspace(0, 1, self.num_heads))
        self.log_sharpness = nn.Parameter(torch.full((self.num_heads,), _LOG_SHARPNESS))
        self.value = nn.Linear(width, width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, features: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        """[B, D] from ``features`` [B, F, D] and ``shown`` [B, F] bool, at least one a row."""
        x = self.norm(features)
        places = torch.arange(shown.shape[1], device=x.device) / (shown.sum(dim=1, keepdim=True) - 1).clamp(
            min=1
        )
        distances = (places.unsqueeze(-1) - self.moments).square() * self.log_sharpness.exp()
        scores = (self.score(x) - distances).masked_fill(~shown.unsqueeze(-1), float("-inf"))
        values = self.value(x).unflatten(-1, (self.num_heads, -1))
        attended = (scores.softmax(dim=1).unsqueeze(-1) * values).sum(dim=1)
        pooled: torch.Tensor = self.project(attended.flatten(1))
        return pooled


class FrameEncoder(nn.Module):
    """An image encoder on every frame, and pooling over time.

    Args:
        image_encoder: from ``pixels`` [N, 3, H, W] to features [N, D].
        pooling: from features [B, F, D] and [B, F] bool to [B, D].
    """

    def __init__(self, image_encoder: nn.Module, pooling: nn.Module) -> None:
        super().__init__()
        self.image_encoder, self.pooling = image_encoder, pooling

    def forward(self, tensors: Tensors) -> torch.Tensor:
        """Features [B, D]; a row without a frame is taken for one whose first is there."""
        rows, count = tensors["pixels"].shape[:2]
        images = {"pixels": tensors["pixels"].flatten(0, 1)}
        if "keys" in tensors:
            images["keys"] = tensors["keys"].repeat_interleave(count)
        features = self.image_encoder(images).unflatten(0, (rows, count))
        places = torch.arange(count, device=features.device)
        pooled: torch.Tensor = self.pooling(features, places < tensors["length"].clamp(min=1).unsqueeze(1))
        return pooled


def of_frames(image_architecture: Architecture) -> Architecture:
    """The architecture of clips that takes their frames for images of this one."""

    def make(request: Request) -> nn.Module:
        own = request.options.model_dump(include=set(_PoolingOptions.model_fields))
        others = request.options.model_dump(exclude=set(own))
        image_options = image_architecture.options.model_validate(others)
        image_encoder = image_architecture.build(replace(request, options=image_options))
        return FrameEncoder(image_encoder, _pooling(own["pooling"], request))

    summary = f"{image_architecture.summary}; on each frame, pooled over time"
    return replace(
        image_architecture, summary=summary, options=_with_pooling(image_architecture.options), build=make
    )


def _with_pooling(options: type[Settings]) -> type[Settings]:
    return create_model(f"{options.__name__}OfFrames", __base__=(_PoolingOptions, options))


def _pooling(name: str, request: Request) -> nn.Module:
    if name == "mean":
        return MeanPooling()
    if name == "gru":
        return GruPooling(request.width)
    return AttentionPooling(request.width)


VIDEO_ENCODERS = tuple(of_frames(architecture) for architecture in IMAGE_ENCODERS)
