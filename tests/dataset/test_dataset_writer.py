from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.writer import (
    ShardLimits,
    ShardWriter,
    remove_dataset,
    require_vacant,
    write_quarantine,
)
from xmodal_dist.errors import UsageError

SCHEMA = pa.schema(
    [("id", pa.string()), ("image", pa.binary()), ("size", pa.float64()), ("label", pa.string())]
)


def _records(sizes: list[int]) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "image": None if size == 0 else bytes(size), "size": float(i), "label": "ab"[i % 2]}
        for i, size in enumerate(sizes)
    ]


def _write(folder: Path, records: list[dict[str, Any]], limits: ShardLimits) -> list[Any]:
    writer = ShardWriter(str(folder), "train", SCHEMA, limits)
    for record in records:
        writer.add(record)
    return writer.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3000), max_size=60),
    st.integers(1, 9),
    st.integers(1, 6000),
    st.integers(1, 20_000),
)
def test_every_record_is_written_in_order_and_described(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows: int, group_bytes: int, shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("written")
    records = _records(sizes)
    shards = _write(folder, records, ShardLimits(rows, group_bytes, shard_bytes))
    found: list[dict[str, Any]] = []
    for index, shard in enumerate(shards):
        path = folder / shard.path
        assert shard.path == f"data/train-{index:05d}.parquet"
        payload = path.read_bytes()
        assert (shard.bytes, shard.sha256) == (len(payload), hashlib.sha256(payload).hexdigest())
        file = pq.ParquetFile(path, page_checksum_verification=True)
        metadata = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        assert [g.rows for g in shard.row_groups] == [m.num_rows for m in metadata]
        assert shard.rows == file.metadata.num_rows
        assert all(g.rows <= rows for g in shard.row_groups)
        held = [file.read_row_group(i).column("image").to_pylist() for i in range(file.num_row_groups)]
        media = [sum(len(value or b"") for value in values) for values in held]
        assert all(m <= group_bytes or g.rows == 1 for m, g in zip(media, shard.row_groups, strict=True))
        assert sum(media) <= shard_bytes or len(media) == 1
        found += file.read().to_pylist()
    assert found == records
    assert len(list((folder / "data").iterdir()) if shards else []) == len(shards)


def test_limits_hold_in_bytes(tmp_path: Path) -> None:
    shards = _write(tmp_path, _records([1000] * 64), ShardLimits(16, 4100, 20_000))
    assert all(shard.bytes < 24_000 for shard in shards)
    assert all(group.rows <= 4 for shard in shards for group in shard.row_groups)
    assert len(shards) >= 4


def test_a_record_larger_than_a_shard_makes_its_own(tmp_path: Path) -> None:
    shards = _write(tmp_path, _records([10, 50_000, 10]), ShardLimits(64, 1000, 20_000))
    assert [shard.rows for shard in shards] == [1, 1, 1]


def test_media_are_plain_and_other_columns_compressed(tmp_path: Path) -> None:
    (shard,) = _write(tmp_path, _records([100] * 40), ShardLimits(64, 1 << 20, 1 << 20))
    group = pq.read_metadata(tmp_path / shard.path).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["image"].compression == "UNCOMPRESSED"
    assert "RLE_DICTIONARY" not in columns["image"].encodings
    assert not columns["image"].is_stats_set
    assert columns["label"].compression == "ZSTD"
    assert "RLE_DICTIONARY" in columns["label"].encodings


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    limits = ShardLimits(8, 1 << 20, 3000)
    one, two = (_write(tmp_path / name, _records([100] * 40), limits) for name in ("one", "two"))
    assert one == two
    assert len(one) > 1
    for shard in one:
        assert (tmp_path / "one" / shard.path).read_bytes() == (tmp_path / "two" / shard.path).read_bytes()


def test_a_new_or_empty_folder_is_vacant(tmp_path: Path) -> None:
    require_vacant(str(tmp_path), overwrite=False)
    require_vacant(str(tmp_path / "new"), overwrite=False)


def test_the_quarantine_of_a_failed_run_is_no_obstacle(tmp_path: Path) -> None:
    write_quarantine(str(tmp_path), [Rejected("a", 0, "", "", "row_unreadable", "")])
    assert (tmp_path / "quarantine" / "part-00000.parquet").exists()
    require_vacant(str(tmp_path), overwrite=False)


def test_a_folder_that_holds_something_else_is_refused_even_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"already holds something else \('thesis.tex'\)"):
        require_vacant(str(tmp_path), overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        require_vacant(str(tmp_path / "thesis.tex"), overwrite=True)


def test_a_dataset_is_replaced_only_when_asked(tmp_path: Path) -> None:
    _write(tmp_path, _records([10]), ShardLimits(8, 1000, 1000))
    (tmp_path / "data" / f"val-00000.parquet.{'0' * 32}.tmp").touch()
    with pytest.raises(UsageError, match="already holds an unfinished dataset.*--overwrite"):
        require_vacant(str(tmp_path), overwrite=False)
    (tmp_path / "manifest.json").touch()
    with pytest.raises(UsageError, match="already holds a dataset.*--overwrite"):
        require_vacant(str(tmp_path), overwrite=False)
    require_vacant(str(tmp_path), overwrite=True)
    remove_dataset(str(tmp_path))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
