"""A field made concrete: its columns, settings and what was fitted. The unit that readers, models and bundles share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from xmodal_dist.batch import Batch
from xmodal_dist.encoders import SEEN
from xmodal_dist.errors import UsageError
from xmodal_dist.modalities import Decoded, FieldSettings, Fitted, Modality, load
from xmodal_dist.randomness import field_salt
from xmodal_dist.settings import explain

__all__ = ["FieldSpec", "field_settings", "transform"]

_OF_TRAINING = frozenset({"frozen_epochs", "learning_rate_scale", "layer_decay"})
_OF_ENCODER = frozenset({"encoder", "encoder_options", "pretrained"})


@dataclass(frozen=True)
class FieldSpec:
    """One field as a run or a bundle uses it.

    Attributes:
        name: the field's name.
        columns: the columns it reads, in order.
        settings: settings of its modality; ``settings.kind`` names the modality.
        fitted: what it learned from the train split.
    """

    name: str
    columns: tuple[str, ...]
    settings: FieldSettings
    fitted: Fitted

    cached_apart: ClassVar[bool] = False
    """Whether its unpacked values are worth a cache entry without other fields'."""

    @property
    def modality(self) -> Modality[Any]:
        """The modality of this field."""
        return load(self.settings.kind)

    @property
    def fit_identity(self) -> dict[str, Any]:
        """The settings that ``fitted`` depends on; specs of one field that are equal in it were fitted alike."""
        own = self.modality.device_settings | _OF_TRAINING
        return {k: v for k, v in self.settings.model_dump(mode="json").items() if k not in own}

    @property
    def unpack_identity(self) -> list[Any]:
        """All that the modality's ``unpack`` depends on besides the data and the code, JSON-able."""
        settings = {k: v for k, v in self.fit_identity.items() if k not in _OF_ENCODER}
        return [self.columns, settings, self.fitted.values, self.fitted.files]

    def unpack(self, columns: Sequence[pa.Array]) -> list[pa.Array]:
        """See the modality's ``unpack``."""
        return self.modality.unpack(self.settings, self.fitted, columns)

    def decode(self, columns: Sequence[pa.Array], keys: NDArray[np.uint64] | None) -> Decoded:
        """See the modality's ``decode``; keys are the field's own."""
        decoded: Decoded = self.modality.decode(self.settings, self.fitted, columns, keys)
        return decoded

    def to_json(self) -> dict[str, Any]:
        """Everything but the fitted files, JSON-able."""
        return {
            "name": self.name,
            "columns": list(self.columns),
            "settings": self.settings.model_dump(mode="json"),
            "fitted": self.fitted.values,
        }

    @staticmethod
    def from_json(content: Mapping[str, Any], files: Mapping[str, str]) -> FieldSpec:
        """Inverse of :meth:`to_json`."""
        settings = dict(content["settings"])
        return FieldSpec(
            content["name"],
            tuple(content["columns"]),
            field_settings(content["name"], settings.pop("kind"), settings),
            Fitted(dict(content["fitted"]), dict(files)),
        )


def field_settings(name: str, kind: str, values: Mapping[str, Any]) -> FieldSettings:
    """Validated settings of a field of a kind.

    Raises:
        UsageError: naming the setting under ``fields.NAME``.
    """
    modality = load(kind)
    try:
        settings: FieldSettings = modality.settings.model_validate({"kind": kind, **values})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(explain({**first, "loc": ("fields", name, *first["loc"])})) from error
    return settings


def transform(specs: Sequence[FieldSpec], batch: Batch, augment: bool) -> Batch:
    """Normalise every field of a batch on its device and, if asked, augment it by the records' keys.

    What a backbone has seen already stays as it is.
    """
    inputs = {}
    for spec in specs:
        tensors = batch.inputs[spec.name]
        keys = batch.keys ^ field_salt(spec.name) if augment else None
        if SEEN in tensors:
            inputs[spec.name] = tensors if keys is None else {**tensors, "keys": keys}
        else:
            inputs[spec.name] = spec.modality.transform(spec.settings, spec.fitted, tensors, keys)
    return batch.with_inputs(inputs)
