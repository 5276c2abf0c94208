"""The settings of a run that a search changes: values by dotted name into the sections of a configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from xmodal_dist.errors import UsageError
from xmodal_dist.modalities.fields import field_settings
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.settings import explain
from xmodal_dist.train.settings import TrainSettings

__all__ = ["RunSettings"]

_SEARCHED = ("fields", "model", "train")
_OF_THE_SEARCH = {"monitor": "search.metrics", "seed": "search.repeat_seeds"}
_NOTHING = object()


class RunSettings(NamedTuple):
    """The sections of a configuration that a run needs.

    Attributes:
        fields: settings by field name, those that are given; None leaves the field out.
        model: of the model.
        train: of the training.
        pipeline: of the reading.
        kinds: the kind of every field that is not left out, by name.
    """

    fields: Mapping[str, Mapping[str, Any] | None]
    model: ModelSettings
    train: TrainSettings
    pipeline: PipelineSettings
    kinds: Mapping[str, str]

    def identity(self) -> dict[str, Any]:
        """What decides the result of a run with these settings; JSON-able."""
        return {
            "fields": copy.deepcopy(dict(self.fields)),
            "model": self.model.model_dump(mode="json"),
            "train": self.train.identity(),
            "window_rows": self.pipeline.window_rows,
        }

    def with_values(self, values: Mapping[str, Any]) -> RunSettings:
        """These settings with others in their place.

        Args:
            values: by dotted name, as ``--set`` takes them.

        Raises:
            UsageError: a name is unknown or cannot be searched, or a value is out of range.
        """
        content: dict[str, Any] = {
            "fields": copy.deepcopy(dict(self.fields)),
            "model": self.model.model_dump(),
            "train": self.train.model_dump(),
        }
        for name, value in values.items():
            self._check_name(name)
            *path, last = name.split(".")
            inner = content
            for key in path:
                inner = inner.setdefault(key, {})
            inner[last] = value
        for field, kind in self.kinds.items():
            field_settings(field, kind, content["fields"].get(field, {}))
        try:
            model = ModelSettings.model_validate(content["model"])
            train = TrainSettings.model_validate(content["train"])
        except ValidationError as error:
            raise UsageError(f"{', '.join(values)}: {explain(error.errors()[0])}") from error
        return self._replace(fields=content["fields"], model=model, train=train)

    def value_of(self, name: str) -> Any:
        """The value that a setting has by its dotted name, defaults included; None where there is none."""
        section, *path = name.split(".")
        if section == "fields":
            field, *path = path
            value: Any = field_settings(field, self.kinds[field], self.fields.get(field) or {}).model_dump()
        else:
            value = getattr(self, section).model_dump()
        for key in path:
            value = value.get(key, _NOTHING) if isinstance(value, dict) else _NOTHING
        return None if value is _NOTHING else value

    def _check_name(self, name: str) -> None:
        section, *path = name.split(".")
        if section not in _SEARCHED or not path or not all(path):
            raise UsageError(
                f"{name!r} cannot be searched: expected a setting of {', '.join(_SEARCHED)}, "
                f"for example train.learning_rate"
            )
        if section == "fields" and path[0] not in self.kinds:
            raise UsageError(f"{name!r}: the run has no such field; its fields: {', '.join(self.kinds)}")
        known = set(TrainSettings.model_fields)
        if section == "train" and path[0] in known - self.train.identity().keys() | _OF_THE_SEARCH.keys():
            instead = f"; see {_OF_THE_SEARCH[path[0]]}" if path[0] in _OF_THE_SEARCH else ""
            raise UsageError(
                f"{name!r} cannot be searched: it does not make a model better or worse{instead}"
            )
