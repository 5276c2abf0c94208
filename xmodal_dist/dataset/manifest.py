"""The manifest of a packed dataset: what is in it, to the byte. Written last; without it there is no dataset."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import ValidationError

from xmodal_dist import storage
from xmodal_dist.dataset.schema import Field
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.settings import Settings
from xmodal_dist.task import MULTICLASS, TaskName

__all__ = ["MANIFEST_NAME", "Manifest", "RowGroup", "Shard", "SplitSummary", "load_manifest", "save_manifest"]

MANIFEST_NAME = "manifest.json"
_VERSION = 1


class RowGroup(Settings):
    """One row group: rows and compressed bytes of all its columns."""

    rows: int
    bytes: int


class Shard(Settings):
    """One Parquet file of one split; ``path`` is relative to the dataset."""

    path: str
    split: str
    rows: int
    bytes: int
    sha256: str
    row_groups: tuple[RowGroup, ...]


class SplitSummary(Settings):
    """Counts of one split: rows, rows of each class (a row may be of several), and for each field rows that lack it."""

    rows: int
    classes: dict[str, int]
    missing: dict[str, int]


class Manifest(Settings):
    """A packed dataset.

    Attributes:
        version: version of this format.
        task: what the label column holds: a class a record, or a list of classes, which may be empty.
        fields: the fields, in the order of ``Batch.present``.
        classes: class names, sorted; a label's index is its place here.
        splits: counts by split name.
        shards: the files, grouped by split, in the order of the global shuffle.
        source_rows: records read from the source.
        quarantined_rows: records rejected; ``source_rows`` = rows of all splits + this.
        has_weights: whether records carry a ``weight`` column.
        seed: seed of splitting and of the global shuffle.
        notes: what packing chose or left out, in sentences.
    """

    version: Literal[1] = 1
    task: TaskName = MULTICLASS.name
    fields: tuple[Field, ...]
    classes: tuple[str, ...]
    splits: dict[str, SplitSummary]
    shards: tuple[Shard, ...]
    source_rows: int
    quarantined_rows: int
    has_weights: bool = False
    seed: int
    notes: tuple[str, ...] = ()

    def split_shards(self, split: str) -> list[tuple[int, Shard]]:
        """The shards of a split with their index in :attr:`shards`.

        Raises:
            UsageError: no such split, or it has no rows.
        """
        if split not in self.splits:
            raise UsageError(
                f"the dataset has no split {split!r}; its splits: {', '.join(sorted(self.splits))}"
            )
        if not self.splits[split].rows:
            raise UsageError(f"the split {split!r} is empty; choose another or pack with other --split-ratio")
        return [(i, shard) for i, shard in enumerate(self.shards) if shard.split == split]

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the whole manifest, checksums of the shards included: names the exact bytes."""
        return hashlib.sha256(_canonical(self).encode()).hexdigest()


def _canonical(manifest: Manifest) -> str:
    content = manifest.model_dump(mode="json")
    if manifest.task == MULTICLASS.name:  # as before there were others: fingerprints stay what they are
        del content["task"]
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def save_manifest(dataset: str, manifest: Manifest) -> None:
    """Write the manifest; call it after every shard is in place."""
    storage.write_bytes(storage.join(dataset, MANIFEST_NAME), _canonical(manifest).encode())


def load_manifest(dataset: str) -> Manifest:
    """Read and check the manifest of a dataset directory.

    Raises:
        UsageError: no dataset there.
        DataError: the manifest is damaged or of another version.
    """
    path = storage.join(dataset, MANIFEST_NAME)
    if not storage.exists(path):
        raise UsageError(
            f"{dataset!r} is not a packed dataset: it has no {MANIFEST_NAME}. "
            f"Pack raw data first: xmodal pack SOURCE {dataset}"
        )
    try:
        content = json.loads(storage.read_text(path))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        if content.get("version") != _VERSION:
            raise DataError(
                f"{path} has version {content.get('version')!r}; this release reads version {_VERSION}: pack again"
            )
        return Manifest.model_validate(content)
    except (ValueError, ValidationError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
