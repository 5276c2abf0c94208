"""What a scoring run writes down: the run, the footer of each part, and the manifest. Versioned; JSON on disk."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from xmodal_dist.settings import Settings

__all__ = ["CONFIDENCE_BINS", "Column", "Footer", "Identity", "Part", "PartEntry", "ScoreManifest", "to_json"]

CONFIDENCE_BINS = 20
"""Equal-width bins over [0, 1] of the predicted class's probability."""


def to_json(content: Settings) -> str:
    """The one JSON text of a document: sorted keys, so that equal documents are equal texts."""
    return json.dumps(content.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, indent=1)


class Identity(Settings):
    """What makes two commands the same run.

    Attributes:
        version: version of this format.
        bundle: fingerprint of the bundle.
        input: digest of the plan.
        files: input files.
        units: units of the plan.
        rows: input rows.
        settings: the settings that change the output.
        code: version of this package.
    """

    version: Literal[1] = 1
    bundle: str
    input: str
    files: int
    units: int
    rows: int
    settings: dict[str, Any]
    code: str

    @property
    def digest(self) -> str:
        """Hex SHA-256 over all of it; every part carries it."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()


class Footer(Settings):
    """What a part says of itself in its Parquet footer, as JSON under the key ``xmodal``.

    Attributes:
        spec: digest of the run's identity.
        unit: index of the unit.
        attempt: random id of the attempt that wrote it.
        source: input file.
        start: first row of the unit in ``source``.
        stop: row after its last.
        rows_in: ``stop - start`` = ``rows_ok`` + ``rows_bad``.
        rows_ok: rows of this part.
        rows_bad: rows of its quarantine file.
        quarantine: path of the quarantine file, relative to the output; "" if ``rows_bad`` is 0.
        quarantine_sha256: checksum of that file.
        labels: predicted class -> rows.
        confidence: rows by equal-width bin, :data:`CONFIDENCE_BINS` of them, of the predicted class's probability.
        reasons: reason code -> rejected rows.
    """

    spec: str
    unit: int
    attempt: str
    source: str
    start: int
    stop: int
    rows_in: int
    rows_ok: int
    rows_bad: int
    quarantine: str = ""
    quarantine_sha256: str = ""
    labels: dict[str, int]
    confidence: tuple[int, ...]
    reasons: dict[str, int]


class Part(Settings):
    """A committed part: its path in the output, checksum, size and footer."""

    path: str
    sha256: str
    bytes: int
    footer: Footer


class Column(Settings):
    """A column of the output: name and Arrow type."""

    name: str
    type: str


class PartEntry(Settings):
    """A part in the manifest; ``quarantine`` is "" where no record was rejected."""

    path: str
    sha256: str
    bytes: int
    rows: int
    rows_bad: int
    quarantine: str
    quarantine_sha256: str


class ScoreManifest(Settings):
    """The whole output of a finished run; ``rows_in`` = ``rows_ok`` + ``rows_bad``.

    Attributes:
        version: version of this format.
        spec: digest of the run's identity.
        bundle: fingerprint of the bundle.
        classes: class names by index of the probabilities.
        rows_in: rows of the input.
        rows_ok: rows of all parts.
        rows_bad: rows in the quarantine.
        label_counts: predicted class -> rows, every class named.
        confidence_counts: rows by equal-width bins over [0, 1].
        quarantine: reason code -> rows.
        columns: columns of every part.
        parts: the files, in input order.
    """

    version: Literal[1] = 1
    spec: str
    bundle: str
    classes: tuple[str, ...]
    rows_in: int
    rows_ok: int
    rows_bad: int
    label_counts: dict[str, int]
    confidence_counts: tuple[int, ...]
    quarantine: dict[str, int]
    columns: tuple[Column, ...]
    parts: tuple[PartEntry, ...]
