"""Check a packed dataset against its manifest: every file to the byte, every record counted."""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import MANIFEST_NAME, Manifest, Shard, SplitSummary, load_manifest
from xmodal_dist.dataset.schema import ID, LABEL, WEIGHT
from xmodal_dist.errors import UsageError
from xmodal_dist.task import task_of

__all__ = ["VerifyResult", "verify_dataset"]

_NO_ROWS = SplitSummary(rows=0, classes={}, missing={})


class VerifyResult(NamedTuple):
    """What a verification found.

    Attributes:
        lost: records that should be there and are not.
        duplicated: records whose id another record has already, in whichever split.
        failed_checks: everything that is wrong, a sentence each; empty if all is well.
    """

    lost: int
    duplicated: int
    failed_checks: list[str]


class _Found:
    """What the shards really hold; a row group counts as a whole or, where it cannot be read, not at all."""

    def __init__(self) -> None:
        self.rows = Counter[str]()
        self.classes = Counter[tuple[str, str]]()
        self.missing = Counter[tuple[str, str]]()
        self.ids = Counter[str]()

    def add(self, split: str, table: pa.Table, manifest: Manifest) -> None:
        """Count the rows of one row group."""
        ids, labels = table.column(ID).to_pylist(), table.column(LABEL).to_pylist()
        self.ids.update(ids)
        task = task_of(manifest.task)
        self.classes.update((split, name) for label in labels for name in task.classes_of(label))
        for field in manifest.fields:
            absent = table.column(field.columns[0]).is_null().to_numpy()
            for column in field.columns[1:]:
                absent = absent & table.column(column).is_null().to_numpy()
            self.missing[split, field.name] += int(absent.sum())
        self.rows[split] += table.num_rows


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
        try:
            _check_shard(dataset, shard, manifest, found, failed)
        except (pa.ArrowException, OSError, UsageError) as error:
            failed.append(f"{shard.path} cannot be read: {error}")
    listed = {shard.path for shard in manifest.shards}
    failed += [f"{path} is not in {MANIFEST_NAME}" for path in _files(dataset, "data") if path not in listed]
    for split in sorted({*manifest.splits, *found.rows}):
        _compare_split(split, manifest, found, failed)
    quarantined = _quarantined_rows(dataset, failed)
    _compare_totals(manifest, quarantined, failed)
    surplus = sum(count - 1 for count in found.ids.values())
    if surplus:
        example = next(name for name, count in found.ids.items() if count > 1)
        failed.append(f"{surplus} records share their id with another, for example {example!r}")
    lost = max(0, manifest.source_rows - found.rows.total() - quarantined)
    return VerifyResult(lost=lost, duplicated=surplus, failed_checks=failed)


def _check_shard(dataset: str, shard: Shard, manifest: Manifest, found: _Found, failed: list[str]) -> None:
    path = storage.join(dataset, shard.path)
    if not storage.exists(path):
        failed.append(f"{shard.path} is missing: {shard.rows} records")
        return
    if (size := storage.size_of(path)) != shard.bytes:
        failed.append(f"{shard.path} has {size} bytes, the manifest says {shard.bytes}")
    elif (digest := storage.sha256_of(path)) != shard.sha256:
        failed.append(f"{shard.path} has the SHA-256 {digest}, the manifest says {shard.sha256}")
    with storage.open_read(path) as handle, pq.ParquetFile(handle, page_checksum_verification=True) as file:
        _compare_row_groups(file, shard, failed)
        expected = [ID, LABEL, *(c for field in manifest.fields for c in field.columns)]
        expected += [WEIGHT] if manifest.has_weights else []
        if lacking := [name for name in expected if name not in file.schema_arrow.names]:
            failed.append(f"{shard.path} lacks the columns {lacking}, it has {file.schema_arrow.names}")
            return
        for group in range(file.num_row_groups):
            try:
                found.add(shard.split, file.read_row_group(group), manifest)
            except (pa.ArrowException, OSError, ValueError) as error:
                failed.append(f"{shard.path}: row group {group} cannot be read: {error}")


def _compare_row_groups(file: pq.ParquetFile, shard: Shard, failed: list[str]) -> None:
    rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    if sum(rows) != shard.rows:
        failed.append(f"{shard.path} has {sum(rows)} rows, the manifest says {shard.rows}")
    if len(rows) != len(shard.row_groups):
        failed.append(f"{shard.path} has {len(rows)} row groups, the manifest says {len(shard.row_groups)}")
    for index, (counted, said) in enumerate(
        zip_longest(rows, (g.rows for g in shard.row_groups), fillvalue=0)
    ):
        if counted != said:
            failed.append(f"{shard.path}: row group {index} has {counted} rows, the manifest says {said}")
            return  # one cut elsewhere moves all that follow


def _compare_split(split: str, manifest: Manifest, found: _Found, failed: list[str]) -> None:
    summary = manifest.splits.get(split, _NO_ROWS)
    if found.rows[split] != summary.rows:
        failed.append(f"split {split} has {found.rows[split]} records, the manifest says {summary.rows}")
    labels = {label for of, label in found.classes if of == split}
    for name in sorted(labels | {*summary.classes, *manifest.classes}, key=str):
        counted, said = found.classes[split, name], summary.classes.get(name, 0)
        if counted != said:
            failed.append(f"split {split} has {counted} records of class {name!r}, the manifest says {said}")
        if counted and name not in manifest.classes:
            failed.append(f"split {split} has the class {name!r}, the manifest only {list(manifest.classes)}")
    for field in manifest.fields:
        counted, said = found.missing[split, field.name], summary.missing.get(field.name, 0)
        if counted != said:
            failed.append(
                f"split {split}: {counted} records lack field {field.name!r}, the manifest says {said}"
            )


def _compare_totals(manifest: Manifest, quarantined: int, failed: list[str]) -> None:
    if quarantined != manifest.quarantined_rows:
        failed.append(
            f"the quarantine has {quarantined} records, the manifest says {manifest.quarantined_rows}"
        )
    packed = sum(summary.rows for summary in manifest.splits.values())
    if packed + manifest.quarantined_rows != manifest.source_rows:
        failed.append(
            f"{MANIFEST_NAME} does not add up: {manifest.source_rows} records of the source, but "
            f"{packed} packed + {manifest.quarantined_rows} quarantined"
        )


def _quarantined_rows(dataset: str, failed: list[str]) -> int:
    rows = 0
    for path in _files(dataset, "quarantine"):
        try:
            with storage.open_read(storage.join(dataset, path)) as handle:
                rows += pq.read_table(handle).num_rows
        except (pa.ArrowException, OSError) as error:
            failed.append(f"{path} cannot be read: {error}")
    return rows


def _files(dataset: str, folder: str) -> list[str]:
    """The Parquet files of a folder of the dataset, as the manifest writes them."""
    path = storage.join(dataset, folder)
    found = storage.list_files(path, ".parquet") if storage.exists(path) else []
    return [f"{folder}/{name.rpartition(f'/{folder}/')[2]}" for name in found]
