"""One YAML file a run: the sections of every room together, with overrides from the command line.

Nothing below this module sees the whole; each room receives its own section.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml
from pydantic import Field, ValidationError

from xmodal_dist import storage
from xmodal_dist.encoders import EncoderSettings
from xmodal_dist.errors import UsageError
from xmodal_dist.ingest.pack import PackSettings
from xmodal_dist.modalities import available
from xmodal_dist.modalities import load as load_modality
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.settings import Settings, explain, parse_override
from xmodal_dist.train.settings import TrainSettings
from xmodal_dist.tune.settings import SearchSettings

__all__ = ["Config", "EncoderLine", "dump", "dump_changed", "encoders", "json_schema", "load"]


class Config(Settings):
    """Settings of a run.

    Attributes:
        fields: by field name, settings of its modality other than its kind; fields not named take the defaults, and
            what is null is left out of the model.
        pack: how a source becomes a dataset.
        model: fusion and sizes.
        train: how a run trains.
        pipeline: how records are read.
        score: how a dataset is scored.
        search: how hyperparameters are searched.
    """

    fields: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    pack: PackSettings = PackSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    pipeline: PipelineSettings = PipelineSettings()
    score: ScoreSettings = ScoreSettings()
    search: SearchSettings = SearchSettings()


def load(path: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Settings from a YAML file, if one is given, with ``a.b=value`` overrides on top (values are YAML).

    Raises:
        UsageError: the file is not there or not YAML, or a setting is unknown or out of range.
    """
    content = _read(path) if path else {}
    for override in overrides:
        _apply(content, override)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        place = f"{path}: " if path else ""
        raise UsageError("\n".join(place + explain(e) for e in error.errors())) from error


def dump(config: Config) -> str:
    """The settings as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def dump_changed(config: Config) -> str:
    """The settings that are not the defaults as YAML, all sections but the search itself: a run's file."""
    content = config.model_dump(mode="json", exclude_defaults=True, exclude={"search"})
    return yaml.safe_dump(content, sort_keys=False)


def json_schema() -> str:
    """JSON schema of a configuration file, for editors."""
    return json.dumps(Config.model_json_schema(), indent=1)


class EncoderLine(NamedTuple):
    """One encoder that a field may name.

    Attributes:
        kind: kind of the field.
        encoder: what to set ``fields.NAME.encoder`` to; a family's members are named after its colon.
        is_default: whether a field of the kind has it if nothing is set.
        summary: what it is.
        options: names and defaults of ``fields.NAME.encoder_options``.
    """

    kind: str
    encoder: str
    is_default: bool
    summary: str
    options: dict[str, Any]


def encoders() -> list[EncoderLine]:
    """The encoders of every kind of field that ships with the package."""
    lines = []
    for kind in available():
        settings = load_modality(kind).settings
        if not issubclass(settings, EncoderSettings):
            continue
        default = settings.model_fields["encoder"].default
        for architecture in settings.architectures:
            name = architecture.name + (":NAME" if architecture.is_family else "")
            options = architecture.options().model_dump(mode="json")
            lines.append(EncoderLine(kind, name, name == default, architecture.summary, options))
    return lines


def _read(path: str) -> dict[str, Any]:
    if not storage.exists(path):
        raise UsageError(f"the configuration file {path!r} does not exist")
    try:
        content = yaml.safe_load(storage.read_text(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a mapping of sections ({', '.join(Config.model_fields)})")
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    name, value = parse_override(override, "section.name=value, for example train.epochs=20")
    keys = name.split(".")
    inner = content
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override!r}: {key!r} is not a section")
    inner[keys[-1]] = value
