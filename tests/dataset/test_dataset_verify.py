"""Every way in which a dataset can differ from its manifest is found, counted and said; none ends in a traceback."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import Manifest, load_manifest, save_manifest
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.verify import VerifyResult, verify_dataset
from xmodal_dist.dataset.writer import write_quarantine
from xmodal_dist.errors import DataError, UsageError

TRAIN = "data/train-00000.parquet"


@pytest.fixture
def dataset(tiny_dataset: str, tmp_path: Path) -> Path:
    """A copy of the tiny dataset, to be damaged."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / "dataset"))


def _edit(dataset: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest."""
    path = dataset / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _replace(dataset: Path, shard: str, table: pa.Table, rows_per_row_group: int = 8) -> None:
    """Put another table in a shard's place, with a manifest that knows the new file but counts as before."""
    path = dataset / shard
    pq.write_table(table, path, row_group_size=rows_per_row_group)

    def describe(content: dict[str, Any]) -> None:
        entry = next(s for s in content["shards"] if s["path"] == shard)
        entry["bytes"], entry["sha256"] = path.stat().st_size, storage.sha256_of(str(path))

    _edit(dataset, describe)


def _rows(dataset: Path, shard: str = TRAIN) -> int:
    return next(s.rows for s in load_manifest(str(dataset)).shards if s.path == shard)


def _verify(dataset: Path) -> VerifyResult:
    return verify_dataset(str(dataset))


def _said(result: VerifyResult) -> str:
    return "\n".join(result.failed_checks)


def test_a_sound_dataset_passes(tiny_dataset: str) -> None:
    assert verify_dataset(tiny_dataset) == VerifyResult(lost=0, duplicated=0, failed_checks=[])


def test_a_flipped_byte_in_a_value_costs_its_row_group_only(dataset: Path) -> None:
    path = dataset / TRAIN
    column = pq.read_metadata(path).row_group(0).column(1)
    assert column.path_in_schema == "picture"
    payload = bytearray(path.read_bytes())
    payload[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(payload)
    result = _verify(dataset)
    assert (result.lost, result.duplicated) == (8, 0)
    assert f"{TRAIN} has the SHA-256 {storage.sha256_of(str(path))}, the manifest says " in _said(result)
    assert f"{TRAIN}: row group 0 cannot be read" in _said(result)


def test_any_flipped_byte_is_found_without_a_traceback(dataset: Path) -> None:
    path = dataset / TRAIN
    whole = path.read_bytes()
    footer = len(whole) - 4000
    rng = random.Random(0)
    for place in [rng.randrange(len(whole)) for _ in range(40)] + [
        rng.randrange(footer, len(whole)) for _ in range(80)
    ]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        result = _verify(dataset)
        assert any(TRAIN in text for text in result.failed_checks), place
        assert 0 <= result.lost <= _rows(dataset)


def test_a_flipped_byte_in_a_column_name(dataset: Path) -> None:
    path = dataset / TRAIN
    path.write_bytes(path.read_bytes().replace(b"caption", b"captiom"))
    result = _verify(dataset)
    assert result.lost == _rows(dataset)
    assert f"{TRAIN} lacks the columns ['caption'], it has ['id', 'picture', 'captiom'" in _said(result)


def test_a_missing_shard(dataset: Path) -> None:
    (dataset / TRAIN).unlink()
    result = _verify(dataset)
    assert (result.lost, result.duplicated) == (_rows(dataset), 0)
    assert f"{TRAIN} is missing: {_rows(dataset)} records" in result.failed_checks
    assert f"split train has {120 - result.lost} records, the manifest says 120" in result.failed_checks


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_shard(dataset: Path, kept: int) -> None:
    path = dataset / TRAIN
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:kept])
    result = _verify(dataset)
    assert result.lost == _rows(dataset)
    assert f"{TRAIN} has {path.stat().st_size} bytes, the manifest says {size}" in result.failed_checks
    assert f"{TRAIN} cannot be read: " in _said(result)


def test_a_folder_in_the_place_of_a_shard(dataset: Path) -> None:
    (dataset / TRAIN).unlink()
    (dataset / TRAIN).mkdir()
    result = _verify(dataset)
    assert result.lost == _rows(dataset)
    assert TRAIN in _said(result)


def test_a_shard_the_manifest_does_not_know(dataset: Path) -> None:
    shutil.copy(dataset / TRAIN, dataset / "data" / "train-00099.parquet")
    assert _verify(dataset) == VerifyResult(0, 0, ["data/train-00099.parquet is not in manifest.json"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m["splits"]["val"].update(rows=14), "split val has 15 records, the manifest says 14"),
        (
            lambda m: m["splits"]["test"]["classes"].update(red=4),
            "split test has 5 records of class 'red', the manifest says 4",
        ),
        (
            lambda m: m["splits"]["train"]["classes"].update(pink=1),
            "split train has 0 records of class 'pink', the manifest says 1",
        ),
        (lambda m: m["classes"].remove("red"), "split train has the class 'red', the manifest only"),
        (
            lambda m: m["splits"]["train"]["missing"].update(weather=120),
            "split train: 0 records lack field 'weather', the manifest says 120",
        ),
        (
            lambda m: m["splits"].pop("val"),
            "split val has 15 records, the manifest says 0",
        ),
        (lambda m: m["shards"][-1].update(rows=99), "rows, the manifest says 99"),
        (
            lambda m: m["shards"][0]["row_groups"][1].update(rows=9),
            "row group 1 has 8 rows, the manifest says 9",
        ),
        (lambda m: m["shards"][0]["row_groups"].pop(), "row groups, the manifest says"),
        (lambda m: m.update(quarantined_rows=2), "the quarantine has 0 records, the manifest says 2"),
        (
            lambda m: m.update(source_rows=149),
            "manifest.json does not add up: 149 records of the source, but 150 packed + 0 quarantined",
        ),
        (lambda m: m.update(has_weights=True), "lacks the columns ['weight']"),
    ],
)
def test_a_manifest_with_other_counts(
    dataset: Path, change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    _edit(dataset, change)
    assert expected in _said(_verify(dataset))


def test_a_source_of_more_records_than_are_there_has_lost_them(dataset: Path) -> None:
    _edit(dataset, lambda m: m.update(source_rows=153))
    result = _verify(dataset)
    assert result.lost == 3
    assert len(result.failed_checks) == 1


def test_an_id_repeated_in_its_shard_and_in_another_split(dataset: Path) -> None:
    table, other = pq.read_table(dataset / TRAIN), pq.read_table(dataset / "data" / "val-00000.parquet")
    ids = table.column("id").to_pylist()
    ids[1] = ids[3] = ids[0]
    ids[2] = other.column("id")[0].as_py()
    _replace(dataset, TRAIN, table.set_column(0, "id", pa.array(ids)))
    result = _verify(dataset)
    assert (result.lost, result.duplicated) == (0, 3)
    assert result.failed_checks == [f"3 records share their id with another, for example {ids[0]!r}"]


def test_rows_cut_into_other_row_groups(dataset: Path) -> None:
    _replace(dataset, TRAIN, pq.read_table(dataset / TRAIN), rows_per_row_group=5)
    result = _verify(dataset)
    assert (result.lost, result.duplicated) == (0, 0)
    assert f"{TRAIN}: row group 0 has 5 rows, the manifest says 8" in result.failed_checks


def test_records_that_were_left_out_when_a_shard_was_written_again(dataset: Path) -> None:
    _replace(dataset, TRAIN, pq.read_table(dataset / TRAIN).slice(3))
    result = _verify(dataset)
    assert (result.lost, result.duplicated) == (3, 0)
    assert f"{TRAIN} has {_rows(dataset) - 3} rows, the manifest says {_rows(dataset)}" in _said(result)


def _with_quarantine(dataset: Path) -> Path:
    write_quarantine(str(dataset), [Rejected("t.jsonl", i, f"q{i}", "", "label_missing", "") for i in (7, 9)])
    manifest = load_manifest(str(dataset))
    save_manifest(
        str(dataset), manifest.model_copy(update={"source_rows": 152, "quarantined_rows": 2}, deep=True)
    )
    return dataset / "quarantine" / "part-00000.parquet"


def test_quarantined_records_are_not_lost_unless_their_file_is(dataset: Path) -> None:
    path = _with_quarantine(dataset)
    assert _verify(dataset) == VerifyResult(0, 0, [])
    path.write_bytes(path.read_bytes()[:-9])
    result = _verify(dataset)
    assert result.lost == 2
    assert "quarantine/part-00000.parquet cannot be read: " in _said(result)
    path.unlink()
    result = _verify(dataset)
    assert result.lost == 2
    assert result.failed_checks == ["the quarantine has 0 records, the manifest says 2"]


def test_a_missing_or_damaged_manifest_is_an_error(dataset: Path) -> None:
    (dataset / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        _verify(dataset)
    (dataset / "manifest.json").unlink()
    with pytest.raises(UsageError, match="is not a packed dataset"):
        _verify(dataset)


def test_a_dataset_without_records_is_sound(tmp_path: Path) -> None:
    empty = Manifest(
        fields=(), classes=("a", "b"), splits={}, shards=(), source_rows=0, quarantined_rows=0, seed=0
    )
    save_manifest(str(tmp_path), empty)
    assert _verify(tmp_path) == VerifyResult(0, 0, [])
