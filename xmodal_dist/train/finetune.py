"""What training does with pretrained encoders: their weights, their rates, and when they stand still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from xmodal_dist.encoders import EncoderSettings, Pretrained
from xmodal_dist.errors import UsageError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.model.classifier import CrossModalClassifier
from xmodal_dist.settings import Settings

__all__ = ["freeze", "load_pretrained", "rate_scales"]


def load_pretrained(
    model: CrossModalClassifier,
    specs: Sequence[FieldSpec],
    gather: Callable[[str], list[str]],
) -> None:
    """Fetch the weights of all pretrained encoders that are to begin with theirs.

    Args:
        model: on its device.
        specs: the fields.
        gather: the same value of every rank, on every rank.

    Raises:
        UsageError: on every rank, if on any the weights are not there.
    """
    problem = ""
    for settings, encoder in _encoders(model, specs):
        if settings.pretrained:
            for part in _pretrained(encoder):
                try:
                    part.load_weights()
                except UsageError as error:
                    problem = problem or str(error)
    for found in gather(problem):
        if found:
            raise UsageError(found)


def rate_scales(model: CrossModalClassifier, specs: Sequence[FieldSpec]) -> dict[nn.Parameter, float]:
    """What each parameter's learning rate is a multiple of; those that are not in it learn at the run's.

    A field's ``learning_rate_scale`` is that of its pretrained layers, if it has any, and of all its encoder otherwise.
    """
    scales: dict[nn.Parameter, float] = {}
    for settings, encoder in _encoders(model, specs):
        parts = list(_pretrained(encoder))
        if not parts:
            scales |= dict.fromkeys(encoder.parameters(), settings.learning_rate_scale)
        for part in parts:
            rate = settings.learning_rate_scale
            for layer in reversed(part.layers):
                scales |= dict.fromkeys(layer, rate)
                rate *= settings.layer_decay
    return scales


def freeze(model: CrossModalClassifier, specs: Sequence[FieldSpec], epoch: int) -> bool:
    """Let pretrained encoders stand still or learn as their settings say of an epoch; whether anything changed."""
    changed = False
    for settings, encoder in _encoders(model, specs):
        frozen = settings.is_frozen_at(epoch)
        for part in _pretrained(encoder):
            if part.frozen != frozen:
                part.freeze(frozen)
                changed = True
    return changed


def _encoders(
    model: CrossModalClassifier, specs: Sequence[FieldSpec]
) -> Iterator[tuple[EncoderSettings, nn.Module]]:
    encoders = model.encoders
    for spec in specs:
        settings: Settings = spec.settings
        if isinstance(settings, EncoderSettings):
            yield settings, encoders[spec.name]


def _pretrained(encoder: nn.Module) -> Iterator[Pretrained]:
    return (module for module in encoder.modules() if isinstance(module, Pretrained))
