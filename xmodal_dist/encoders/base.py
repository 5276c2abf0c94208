"""What an encoder is: a named architecture, what a field's settings say of it, and what training may ask of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn

from xmodal_dist.batch import Tensors
from xmodal_dist.settings import Settings

__all__ = [
    "SEEN",
    "Architecture",
    "EncoderSettings",
    "Evidence",
    "Prepared",
    "Pretrained",
    "Request",
    "build",
]

SEEN = "seen"
"""Name of the tensor in which the features of a pretrained backbone stand where it has run already."""


@dataclass(frozen=True)
class Request:
    """What an architecture is built from.

    Attributes:
        reference: what follows the colon of a name like ``timm:resnet18``; else "".
        options: the architecture's own settings.
        values: what the field was fitted to: sizes, vocabularies.
        files: whole files that it was fitted with, by name.
        width: features per row.
    """

    reference: str
    options: Settings
    values: Mapping[str, Any]
    files: Mapping[str, str]
    width: int


@dataclass(frozen=True)
class Prepared:
    """What a pretrained network asks of the data before it, found when the field is fitted and stored in the bundle.

    Attributes:
        values: replace fitted values of these names, for example ``mean``, ``std`` and ``size_px`` of images.
        files: stored beside the field's own, for example the network's configuration, from which it is built again
            where its weights cannot be fetched.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """A network by name, or a family of them (``timm``) whose members are named after a colon (``timm:resnet18``).

    Attributes:
        name: as settings say it.
        summary: one line for people who choose.
        options: class of its settings.
        build: makes the module, with fresh weights and without any network access; it is called with a field's
            transformed tensors and returns [B, width].
        prepare: for families with pretrained weights, by reference and whether to fetch weights; None for others.
        inputs: which tensors it is called with, where its modality can compute several; empty takes what there is.
    """

    name: str
    summary: str
    options: type[Settings]
    build: Callable[[Request], nn.Module]
    prepare: Callable[[str, bool], Prepared] | None = None
    inputs: frozenset[str] = frozenset()

    @property
    def is_family(self) -> bool:
        """Whether a reference follows the name."""
        return self.prepare is not None


class Evidence(nn.Module):
    """An encoder whose features are a sum of what its input's parts say: longer where they say more.

    That length is kept; a norm would make the same of a text of which one word is known as of one that is all known.
    """


class Pretrained(nn.Module, ABC):
    """An encoder whose backbone has pretrained weights; what stands on it is fresh.

    The backbone is always in eval mode: nothing in it is random, and statistics of batches stay as published.

    Args:
        backbone: the pretrained network.
        layers: its parameters that may learn, from input to output, for rates that fall with depth.
        num_features: F, what it makes of a row.
    """

    def __init__(
        self, backbone: nn.Module, layers: Sequence[Sequence[nn.Parameter]], num_features: int
    ) -> None:
        super().__init__()
        self.backbone = backbone.eval()
        self.layers = layers
        self.num_features = num_features
        self.frozen = False

    @abstractmethod
    def see(self, tensors: Tensors) -> torch.Tensor:
        """The backbone's features [B, F] of a field's tensors: a function of them and its weights alone."""

    @abstractmethod
    def head(self, seen: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """Features [B, width] from the backbone's [B, F]; ``keys`` [B] for dropout in training."""

    def forward(self, tensors: Tensors) -> torch.Tensor:
        """Features [B, width] of a field's tensors, or of what :meth:`see` made of them before, in ``seen`` [B, F]."""
        seen = tensors.get(SEEN)
        if seen is None:
            # Without a graph, and so without its cost, while the backbone stands still.
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                seen = self.see(tensors)
        return self.head(seen, tensors.get("keys"))

    @abstractmethod
    def load_weights(self) -> None:
        """Fetch the backbone's weights in place, once, before training; what is built on top stays fresh.

        Raises:
            UsageError: they are not there; says where they were looked for and what to set.
        """

    def freeze(self, frozen: bool) -> None:
        """Let the backbone stand still, or learn again."""
        for layer in self.layers:
            for parameter in layer:
                parameter.requires_grad_(not frozen)
        self.frozen = frozen

    def train(self, mode: bool = True) -> Pretrained:
        """As of any module, but for the backbone, which another thread may be running."""
        self.training = mode
        for child in self.children():
            if child is not self.backbone:
                child.train(mode)
        return self


class EncoderSettings(Settings):
    """What the settings of a field say of its encoder."""

    architectures: ClassVar[tuple[Architecture, ...]] = ()

    encoder: str
    """Name of the network; ``xmodal config encoders`` lists them."""
    encoder_options: dict[str, Any] = Field(default_factory=dict)
    """Settings of that network."""
    pretrained: bool = True
    """Whether a network of a family begins with its published weights."""
    frozen_epochs: int | None = Field(default=0, ge=0)
    """First epochs in which pretrained weights do not move; null never moves them."""
    learning_rate_scale: float = Field(default=1.0, gt=0)
    """Learning rate of pretrained layers, or of the whole of an encoder that has none, as a multiple of the run's."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each layer of a pretrained network learns at this multiple of the rate of the one above it."""

    def is_frozen_at(self, epoch: int) -> bool:
        """Whether pretrained weights do not move in an epoch (from 0), nor in those before it."""
        return self.pretrained and (self.frozen_epochs is None or epoch < self.frozen_epochs)

    @model_validator(mode="after")
    def _check_encoder(self) -> EncoderSettings:
        architecture, _ = self.chosen()
        architecture.options.model_validate(self.encoder_options)
        return self

    def chosen(self) -> tuple[Architecture, str]:
        """The architecture and the reference after its colon.

        Raises:
            ValueError: no such encoder; names those that there are.
        """
        name, _, reference = self.encoder.partition(":")
        for architecture in self.architectures:
            if architecture.name == name and architecture.is_family == bool(reference):
                return architecture, reference
        known = ", ".join(a.name + (":NAME" if a.is_family else "") for a in self.architectures)
        raise ValueError(f"unknown encoder {self.encoder!r}; known: {known}")

    def prepare(self) -> Prepared:
        """What the chosen network asks of the data; nothing where it has no pretrained weights."""
        architecture, reference = self.chosen()
        return (
            Prepared() if architecture.prepare is None else architecture.prepare(reference, self.pretrained)
        )


def build(
    settings: EncoderSettings, values: Mapping[str, Any], files: Mapping[str, str], width: int
) -> nn.Module:
    """The encoder that a field's settings name, with fresh weights."""
    architecture, reference = settings.chosen()
    options = architecture.options.model_validate(settings.encoder_options)
    return architecture.build(Request(reference, options, values, files, width))
