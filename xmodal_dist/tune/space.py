"""A search space: dimensions in an order in which conditions come first, and points in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from xmodal_dist.errors import UsageError
from xmodal_dist.tune.run import RunSettings
from xmodal_dist.tune.settings import Dimension

__all__ = ["Draw", "Space", "default_space", "draw_random"]

Draw = Callable[[str, Dimension], Any]
"""Chooses the value of a dimension by its name."""

_COMMON = {
    "train.learning_rate": {"loguniform": [5e-4, 8e-3]},
    "train.weight_decay": {"loguniform": [5e-3, 0.3]},
    "model.fusion": {"choice": ["late", "concat", "gated", "attention"]},
    "model.width": {"choice": [64, 128, 192, 256]},
    "model.dropout": {"uniform": [0.1, 0.6]},
    "model.modality_dropout": {"uniform": [0.0, 0.4]},
}
_OF_FIELDS = {
    "rotation_deg": {"uniform": [0.0, 20.0]},
    "colour_jitter": {"uniform": [0.0, 0.4]},
    "mask_time": {"uniform": [0.0, 0.3]},
    "token_dropout": {"uniform": [0.0, 0.3]},
    "value_dropout": {"uniform": [0.0, 0.3]},
}
"""Augmentation, of fields that have a setting of this name."""
_ENCODERS = {"text": ("bag", "ngrams")}
"""Of a kind of field, encoders that are about as fast, of which one suits small data and another large."""


class Space:
    """What is searched.

    Args:
        dimensions: by dotted name.

    Raises:
        UsageError: a condition names no dimension, or conditions go in circles.
    """

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        self.dimensions: dict[str, Dimension] = {}
        waiting = dict(dimensions)
        while waiting:
            ready = [n for n, d in waiting.items() if d.when.keys() <= self.dimensions.keys()]
            for name in ready:
                self.dimensions[name] = waiting.pop(name)
            if not ready:
                name, dimension = next(iter(waiting.items()))
                unknown = sorted(dimension.when.keys() - dimensions.keys())
                problem = f"{unknown[0]!r} is not searched" if unknown else "conditions go in circles"
                raise UsageError(f"search.space.{name}.when: {problem}")

    def point(self, draw: Draw) -> dict[str, Any]:
        """A value for every dimension whose condition holds."""
        values: dict[str, Any] = {}
        for name, dimension in self.dimensions.items():
            if _holds(dimension.when, values):
                values[name] = draw(name, dimension)
        return values

    def base_point(self, run: RunSettings) -> dict[str, Any]:
        """The run's own values, which may lie outside."""
        return self.point(lambda name, _: run.value_of(name))

    def contains(self, values: Mapping[str, Any]) -> bool:
        """Whether all values are ones that a search could draw."""
        return all(self.dimensions[name].contains(value) for name, value in values.items())

    def random_point(self, rng: np.random.Generator) -> dict[str, Any]:
        """Independent draws."""
        return self.point(lambda _, dimension: draw_random(dimension, rng))

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination of choices and integers, the last dimension fastest.

        Raises:
            UsageError: a dimension has no countable values.
        """
        for name, dimension in self.dimensions.items():
            if dimension.uniform or dimension.loguniform:
                raise UsageError(f"search.space.{name}: search.algorithm=grid needs choice or integer")
        seen = set()
        for combination in itertools.product(*(_countable(d) for d in self.dimensions.values())):
            chosen = dict(zip(self.dimensions, combination, strict=True))
            values = self.point(lambda name, _: chosen[name])  # noqa: B023
            if (key := repr(values)) not in seen:
                seen.add(key)
                yield values

    def check(self, run: RunSettings) -> None:
        """Try every choice and both ends of every range on a run's settings.

        Raises:
            UsageError: a setting is unknown or a value is out of its range; names the dimension.
        """
        for name, dimension in self.dimensions.items():
            for value in dimension.ends:
                try:
                    run.with_values({**self._conditions(name), name: value})
                except UsageError as error:
                    raise UsageError(f"search.space.{name}: {value!r} is not possible: {error}") from error

    def _conditions(self, name: str) -> dict[str, Any]:
        """Values under which a dimension is searched."""
        values: dict[str, Any] = {}
        for other, wanted in self.dimensions[name].when.items():
            values |= self._conditions(other)
            values[other] = wanted[0] if isinstance(wanted, list) else wanted
        return values


def default_space(run: RunSettings) -> dict[str, Dimension]:
    """What suits the fields: learning rate, weight decay, width, fusion, dropouts, encoders of texts, augmentation."""
    space = {name: Dimension.model_validate(content) for name, content in _COMMON.items()}
    if len(run.kinds) == 1:
        space = {
            name: d for name, d in space.items() if name not in ("model.fusion", "model.modality_dropout")
        }
    for field, kind in run.kinds.items():
        name, encoders = f"fields.{field}.encoder", _ENCODERS.get(kind, ())
        if run.value_of(name) in encoders and not run.value_of(f"{name}_options"):
            space[name] = Dimension(choice=encoders)
        for setting, content in _OF_FIELDS.items():
            name = f"fields.{field}.{setting}"
            if run.value_of(name) is not None:
                space[name] = Dimension.model_validate(content)
    return space


def draw_random(dimension: Dimension, rng: np.random.Generator) -> Any:
    """A value, evenly."""
    if dimension.choice is not None:
        return dimension.choice[int(rng.integers(len(dimension.choice)))]
    low, high = dimension.ends
    if dimension.integer is not None:
        return int(rng.integers(low, high + 1))
    if dimension.uniform is not None:
        return float(rng.uniform(low, high))
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _countable(dimension: Dimension) -> tuple[Any, ...]:
    low_high = dimension.integer
    return dimension.choice or tuple(range(low_high[0], low_high[1] + 1) if low_high else ())


def _holds(when: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(
        name in values and (values[name] in wanted if isinstance(wanted, list) else values[name] == wanted)
        for name, wanted in when.items()
    )
