"""What a scoring run writes down: the run, the footer of each part, receipts and the manifest. Versioned JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from xmodal_dist.settings import Settings

__all__ = [
    "CONFIDENCE_BINS",
    "Column",
    "Footer",
    "Identity",
    "Part",
    "PartFile",
    "Receipt",
    "ScoreManifest",
    "to_json",
]

CONFIDENCE_BINS = 20
"""Equal-width bins over [0, 1] of the predicted class's probability."""


def to_json(content: Settings, indent: int | None = 1) -> str:
    """The one JSON text of a document: sorted keys, so that equal documents are equal texts."""
    return json.dumps(content.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, indent=indent)


class Identity(Settings):
    """What makes two commands the same run.

    Attributes:
        version: version of this format.
        bundle: fingerprint of the bundle.
        bundle_path: where it was; another path to the same bundle is the same run.
        input: digest of the plan.
        files: input files.
        units: units of the plan.
        rows: input rows.
        settings: the settings that change the output.
        code: version of this package.
    """

    version: Literal[2] = 2
    bundle: str
    bundle_path: str = ""
    input: str
    files: int
    units: int
    rows: int
    settings: dict[str, Any]
    code: str

    @property
    def digest(self) -> str:
        """Hex SHA-256 over all of it but the bundle's path; every part carries it."""
        return hashlib.sha256(to_json(self.model_copy(update={"bundle_path": ""})).encode()).hexdigest()


class PartFile(Settings):
    """A file of a committed part: path in the output, checksum, size, rows."""

    path: str
    sha256: str
    bytes: int
    rows: int


class Footer(Settings):
    """What a part says of itself: in its Parquet footer under the key ``xmodal``, or its commit record if partitioned.

    Attributes:
        spec: digest of the run's identity.
        unit: index of the unit.
        generation: 1 for the run itself; each retry of its rejected records is one more.
        attempt: random id of the attempt that wrote it.
        source: input file.
        start: first row of the unit in ``source``.
        stop: row after its last.
        rows_in: rows that this generation was to score: ``rows_ok`` + ``rows_bad``; all of the unit in the first.
        rows_ok: predictions.
        rows_bad: rows of the quarantine file.
        ids: sum modulo 2^128 of the hashes of the ids of the rows read, hexadecimal; order does not matter.
        quarantine: the file of rejected records; None if there are none.
        files: of a partitioned output, the files of predictions; else empty: the part is the file.
        labels: predicted class -> rows; a row of several counts for each.
        confidence: rows by equal-width bin, :data:`CONFIDENCE_BINS` of them, of the predicted class's probability (of
            multilabel the most probable class's).
        present: field -> rows in which it was there.
        reasons: reason code -> rejected rows.
        profile: counts of the fields' measures, as :mod:`xmodal_dist.profile` writes them; empty without a profile.
    """

    spec: str
    unit: int
    generation: int = 1
    attempt: str
    source: str
    start: int
    stop: int
    rows_in: int
    rows_ok: int
    rows_bad: int
    ids: str
    quarantine: PartFile | None = None
    files: tuple[PartFile, ...] = ()
    labels: dict[str, int]
    confidence: tuple[int, ...]
    present: dict[str, int]
    reasons: dict[str, int]
    profile: dict[str, Any] = {}


class Part(Settings):
    """A committed part: its commit record in the output, checksum, size and footer."""

    path: str
    sha256: str
    bytes: int
    footer: Footer

    @property
    def files(self) -> tuple[PartFile, ...]:
        """Its files of predictions."""
        if self.path.endswith(".parquet"):
            return (PartFile(path=self.path, sha256=self.sha256, bytes=self.bytes, rows=self.footer.rows_ok),)
        return self.footer.files


class Receipt(Settings):
    """What a worker tells of a unit.

    Attributes:
        part: as committed, by this attempt or another.
        scored: whether this attempt's part stands.
        isolated: whether records were scored in a process apart, after attempts had died.
        died: attempts at the unit that were under way or had died when this one began.
        bytes_read: of the input, decompressed.
        seconds: wall time by stage.
        cpu_s: CPU-seconds of the process meanwhile.
    """

    part: Part
    scored: bool = True
    isolated: bool = False
    died: int = 0
    bytes_read: int = 0
    seconds: dict[str, float] = {}
    cpu_s: float = 0.0


class Column(Settings):
    """A column of the output: name and Arrow type."""

    name: str
    type: str


class ScoreManifest(Settings):
    """The whole output of a finished run; ``rows_in`` = ``rows_ok`` + ``rows_bad``.

    Attributes:
        version: version of this format.
        generation: 1, and one more for each retry.
        spec: digest of the run's identity.
        bundle: fingerprint of the bundle.
        input: digest of the plan.
        classes: class names by index of the probabilities.
        rows_in: rows of the input.
        rows_ok: predictions.
        rows_bad: rows in the quarantine.
        label_counts: predicted class -> rows, every class named; a row of several classes counts for each.
        confidence_counts: rows by equal-width bins over [0, 1].
        present_counts: field -> rows in which it was there.
        quarantine: reason code -> rows.
        profile: counts of the fields' measures over all rows.
        columns: columns of the predictions.
        partition_by: column whose values are folders; None where parts are whole.
        files: Parquet table of all files that count, in input order: ``unit``, ``generation``, ``role`` (``data``,
            ``commit`` or ``quarantine``), ``path``, ``sha256``, ``bytes``, ``rows``.
    """

    version: Literal[2] = 2
    generation: int = 1
    spec: str
    bundle: str
    input: str
    classes: tuple[str, ...]
    rows_in: int
    rows_ok: int
    rows_bad: int
    label_counts: dict[str, int]
    confidence_counts: tuple[int, ...]
    present_counts: dict[str, int]
    quarantine: dict[str, int]
    profile: dict[str, Any] = {}
    columns: tuple[Column, ...]
    partition_by: str | None = None
    files: PartFile
