"""What all workers of a scoring run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from xmodal_dist.dataset.schema import LABEL
from xmodal_dist.score.settings import ScoreSettings

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """All that the workers of a run share.

    Attributes:
        bundle: path or URI of the bundle.
        fingerprint: of the bundle; another one there is refused.
        output: path or URI of the output.
        spec: digest of the run's identity.
        schema: columns of every part.
        fields: for each field of the bundle, the input's columns it reads, in order.
        settings: of the run; its ``id_column`` is None only where the input has no ids.
        generation: of the parts; above 1, rejected records are tried again.
        retried: then unit -> the output's file of its records that were rejected.
    """

    bundle: str
    fingerprint: str
    output: str
    spec: str
    schema: pa.Schema
    fields: tuple[tuple[str, ...], ...]
    settings: ScoreSettings
    generation: int = 1
    retried: Mapping[int, str] = field(default_factory=dict)

    @property
    def label_column(self) -> str | None:
        """Input column of the true class in evaluation, else None."""
        return LABEL if self.settings.evaluation else None

    @property
    def copied(self) -> list[str]:
        """Input columns that go to the output as they are, each once."""
        optional = [c for c in (self.settings.id_column, self.label_column) if c is not None]
        return list(dict.fromkeys([*optional, *self.settings.passthrough]))

    @property
    def columns(self) -> list[str]:
        """Input columns to read, each once."""
        return list(dict.fromkeys([*(c for columns in self.fields for c in columns), *self.copied]))
