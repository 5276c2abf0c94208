"""A dataset is what its manifest says, or verify says where not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xmodal_dist.dataset.verify import verify_dataset
from xmodal_dist.errors import UsageError


@pytest.fixture
def dataset(tiny_dataset: str, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / "dataset"))


def _edit(dataset: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = dataset / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_packed_dataset_is_whole(dataset: Path) -> None:
    assert verify_dataset(str(dataset)) == (0, 0, [])


def test_a_missing_shard_is_lost_records(dataset: Path) -> None:
    shard = json.loads((dataset / "manifest.json").read_text())["shards"][-1]
    (dataset / shard["path"]).unlink()
    found = verify_dataset(str(dataset))
    assert (found.lost, found.duplicated) == (shard["rows"], 0)
    assert f"{shard['path']} is missing: {shard['rows']} records" in found.failed_checks
    assert any(check.startswith(f"split {shard['split']} has ") for check in found.failed_checks)


@pytest.mark.parametrize("at", [10, 3000, -10])
def test_a_flipped_bit_is_found(dataset: Path, at: int) -> None:
    path = sorted((dataset / "data").iterdir())[0]
    payload = bytearray(path.read_bytes())
    payload[at] ^= 1
    path.write_bytes(bytes(payload))
    checks = verify_dataset(str(dataset)).failed_checks
    assert f"data/{path.name} is damaged: its SHA-256 is not the one in the manifest" in checks


def test_records_that_are_there_twice_are_counted(dataset: Path) -> None:
    shards = json.loads((dataset / "manifest.json").read_text())["shards"]
    first, last = dataset / shards[0]["path"], dataset / shards[-1]["path"]
    assert shards[0]["split"] != shards[-1]["split"]
    pq.write_table(pa.concat_tables([pq.read_table(last), pq.read_table(first).slice(0, 2)]), last)
    found = verify_dataset(str(dataset))
    assert found.duplicated == 2
    assert any("2 records share their id with another" in check for check in found.failed_checks)
    assert any("has row groups of other sizes" in check for check in found.failed_checks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["splits"]["train"]["classes"].update(red=41),
            "records of class 'red', the manifest says 41",
        ),
        (
            lambda m: m["splits"]["val"]["missing"].update(picture=9),
            "lack field 'picture', the manifest says 9",
        ),
        (lambda m: m.update(quarantined_rows=2), "the quarantine has 0 records, the manifest says 2"),
        (lambda m: m["shards"][0].update(bytes=7), "bytes, the manifest says 7"),
    ],
    ids=["classes", "missing", "quarantine", "bytes"],
)
def test_a_manifest_that_miscounts_is_found(
    dataset: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    _edit(dataset, change)
    assert any(message in check for check in verify_dataset(str(dataset)).failed_checks)


def test_source_records_that_are_nowhere_are_lost(dataset: Path) -> None:
    _edit(dataset, lambda m: m.update(source_rows=153))
    assert verify_dataset(str(dataset)).lost == 3


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a packed dataset"):
        verify_dataset(str(tmp_path))
