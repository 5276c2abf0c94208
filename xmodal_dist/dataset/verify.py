"""Check a packed dataset against its manifest: every file to the byte, every record counted."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import Manifest, Shard, load_manifest
from xmodal_dist.dataset.schema import ID, LABEL

__all__ = ["VerifyResult", "verify_dataset"]


class VerifyResult(NamedTuple):
    """What a verification found.

    Attributes:
        lost: records that should be there and are not.
        duplicated: records that are there more than once.
        failed_checks: everything that is wrong, a sentence each; empty if all is well.
    """

    lost: int
    duplicated: int
    failed_checks: list[str]


class _Found:
    """What the shards really hold."""

    def __init__(self) -> None:
        self.rows = Counter[str]()
        self.classes = Counter[tuple[str, str]]()
        self.missing = Counter[tuple[str, str]]()
        self.ids = Counter[str]()


def verify_dataset(dataset: str) -> VerifyResult:
    """Read every shard of a dataset and compare it with the manifest.

    Raises:
        UsageError: no dataset there.
        DataError: its manifest is damaged.
    """
    manifest = load_manifest(dataset)
    failed: list[str] = []
    found = _Found()
    for shard in manifest.shards:
        path = storage.join(dataset, shard.path)
        if not storage.exists(path):
            failed.append(f"{shard.path} is missing: {shard.rows} records")
            continue
        if (size := storage.size_of(path)) != shard.bytes:
            failed.append(f"{shard.path} has {size} bytes, the manifest says {shard.bytes}")
        elif storage.sha256_of(path) != shard.sha256:
            failed.append(f"{shard.path} is damaged: its SHA-256 is not the one in the manifest")
        try:
            _read_shard(path, shard, manifest, found, failed)
        except (pa.ArrowException, OSError) as error:
            failed.append(f"{shard.path} cannot be read: {error}")
    _compare_splits(manifest, found, failed)
    quarantined = _quarantined_rows(dataset, failed)
    if quarantined != manifest.quarantined_rows:
        failed.append(
            f"the quarantine has {quarantined} records, the manifest says {manifest.quarantined_rows}"
        )
    surplus = sum(count - 1 for count in found.ids.values())
    if surplus:
        example = next(name for name, count in found.ids.items() if count > 1)
        failed.append(f"{surplus} records share their id with another, for example {example!r}")
    lost = max(0, manifest.source_rows - found.rows.total() - quarantined)
    return VerifyResult(lost=lost, duplicated=surplus, failed_checks=failed)


def _read_shard(path: str, shard: Shard, manifest: Manifest, found: _Found, failed: list[str]) -> None:
    """Count what is in a shard, a row group at a time."""
    with storage.open_read(path) as handle, pq.ParquetFile(handle, page_checksum_verification=True) as file:
        rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        if rows != [group.rows for group in shard.row_groups]:
            failed.append(f"{shard.path} has row groups of other sizes than the manifest says")
        for group in range(len(rows)):
            table = file.read_row_group(group)
            found.rows[shard.split] += table.num_rows
            found.ids.update(table.column(ID).to_pylist())
            found.classes.update((shard.split, label) for label in table.column(LABEL).to_pylist())
            for field in manifest.fields:
                columns = [table.column(c).is_null().to_numpy() for c in field.columns]
                absent = columns[0].copy()
                for column in columns[1:]:
                    absent &= column
                found.missing[shard.split, field.name] += int(absent.sum())


def _compare_splits(manifest: Manifest, found: _Found, failed: list[str]) -> None:
    for split, summary in manifest.splits.items():
        if found.rows[split] != summary.rows:
            failed.append(f"split {split} has {found.rows[split]} records, the manifest says {summary.rows}")
        for name in manifest.classes:
            counted, said = found.classes[split, name], summary.classes.get(name, 0)
            if counted != said:
                failed.append(
                    f"split {split} has {counted} records of class {name!r}, the manifest says {said}"
                )
        for field, said in summary.missing.items():
            counted = found.missing[split, field]
            if counted != said:
                failed.append(
                    f"split {split}: {counted} records lack field {field!r}, the manifest says {said}"
                )


def _quarantined_rows(dataset: str, failed: list[str]) -> int:
    folder = storage.join(dataset, "quarantine")
    rows = 0
    for path in storage.list_files(folder, ".parquet") if storage.exists(folder) else []:
        try:
            with storage.open_read(path) as handle:
                rows += pq.read_metadata(handle).num_rows
        except (pa.ArrowException, OSError) as error:
            failed.append(f"{path} cannot be read: {error}")
    return rows
