from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xmodal_dist import api
from xmodal_dist.dataset.inspect import inspect_dataset
from xmodal_dist.dataset.manifest import MANIFEST_NAME, Manifest, load_manifest
from xmodal_dist.dataset.verify import verify_dataset
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.ingest.pack import PackSettings, pack

LABELS: list[Any] = [["b", "a"], [], ["c"], None, ["a", "a", " c "], ["b"]] * 10


def _records(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "label": label, "text": f"some words {i % 7}"} for i, label in enumerate(labels)]


def _jsonl(folder: Path, labels: list[Any]) -> str:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in _records(labels)))
    return str(path)


def _pack(source: str, folder: Path, **settings: Any) -> Manifest:
    asked = PackSettings.model_validate({"max_bad_fraction": 1.0, **settings})
    return pack(source, str(folder / "dataset"), settings=asked, overwrite=True)


def test_lists_of_any_source_are_packed_alike(tmp_path: Path) -> None:
    manifest = _pack(_jsonl(tmp_path, LABELS), tmp_path)
    assert (manifest.task, manifest.classes) == ("multilabel", ("a", "b", "c"))
    assert manifest.quarantined_rows == 10  # no label is something else than no class
    splits = manifest.splits.values()
    assert sum(s.rows for s in splits) == 50
    assert {name: sum(s.classes[name] for s in splits) for name in "abc"} == {"a": 20, "b": 20, "c": 20}
    table = pa.concat_tables(pq.read_table(tmp_path / "dataset" / s.path) for s in manifest.shards)
    found = dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert [found.get(f"r{i}") for i in range(6)] == [["a", "b"], [], ["c"], None, ["a", "c"], ["b"]]

    pq.write_table(pa.Table.from_pylist(_records(LABELS)), tmp_path / "records.parquet")
    from_parquet = _pack(str(tmp_path / "records.parquet"), tmp_path)
    rows = "".join(
        f"r{i},{'' if label is None else '|'.join(label) or '|'},some words {i % 7}\n"
        for i, label in enumerate(LABELS)
    )
    (tmp_path / "records.csv").write_text(f"id,label,text\n{rows}")
    from_csv = api.pack(
        str(tmp_path / "records.csv"),
        str(tmp_path / "dataset"),
        label_separator="|",
        overwrite=True,
        set=["pack.max_bad_fraction=1"],
    )
    for other in (from_parquet, from_csv):
        assert (other.shards, other.splits, other.notes) == (manifest.shards, manifest.splits, manifest.notes)


def test_the_dataset_verifies_and_is_described(tmp_path: Path) -> None:
    _pack(_jsonl(tmp_path, LABELS), tmp_path, split_ratio=(1.0, 0.0, 0.0))
    dataset = str(tmp_path / "dataset")
    assert verify_dataset(dataset).failed_checks == []
    assert load_manifest(dataset).task == "multilabel"
    found = inspect_dataset(dataset)
    assert found.label_sets["train"] == {"cardinality": 1.2, "without_class": 10, "distinct": 5}


def test_a_dataset_of_single_labels_says_nothing_of_a_task(tmp_path: Path) -> None:
    _pack(_jsonl(tmp_path, ["a", "b"] * 10), tmp_path)
    assert "task" not in json.loads((tmp_path / "dataset" / MANIFEST_NAME).read_text())


@pytest.mark.parametrize("stray", ["a", 3, True])
def test_a_single_class_among_lists_is_named_with_its_row(tmp_path: Path, stray: Any) -> None:
    labels = [["a"], ["b"], stray, ["a", "b"]]
    with pytest.raises(DataError, match=r"records\.jsonl row 2: .* but records\.jsonl row 0 has a list"):
        _pack(_jsonl(tmp_path, labels), tmp_path)


def test_a_list_that_holds_no_classes_is_set_aside(tmp_path: Path) -> None:
    labels = [["a", None], ["b", {"x": 1}], ["a", 3, 4.0, True], [""], ["b"]] * 4
    manifest = _pack(_jsonl(tmp_path, labels), tmp_path, split_ratio=(1.0, 0.0, 0.0))
    assert (manifest.quarantined_rows, manifest.classes) == (12, ("3", "4", "a", "b", "true"))
    rejected = pq.read_table(tmp_path / "dataset" / "quarantine")
    assert set(rejected["reason"].to_pylist()) == {"column_type"}
    assert "holds None" in rejected["message"][0].as_py()


def test_lists_need_no_separator(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pack\.label_separator='\|': .* holds lists already"):
        _pack(_jsonl(tmp_path, LABELS), tmp_path, label_separator="|")


def test_one_class_is_enough_for_lists_and_none_is_not(tmp_path: Path) -> None:
    assert _pack(_jsonl(tmp_path, [["a"], []] * 10), tmp_path).classes == ("a",)
    with pytest.raises(DataError, match="has no label: a classifier needs one or more"):
        _pack(_jsonl(tmp_path, [[]] * 10), tmp_path)
