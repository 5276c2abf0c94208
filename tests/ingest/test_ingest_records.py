"""Which records can be packed: ids, labels, weights and splits, as the source tells them or as they are made."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from xmodal_dist.errors import BudgetExceededError, DataError
from xmodal_dist.ingest.pack import PackSettings, pack

LENIENT = PackSettings(max_bad_fraction=0.5)


def _csv(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def _packed(dataset: Path) -> list[dict[str, Any]]:
    """The records in order of their ids, each with its ``split``."""
    files = sorted((dataset / "data").glob("*.parquet"))
    rows = [
        {**row, "split": file.name.partition("-")[0]}
        for file in files
        for row in pq.read_table(file).to_pylist()
    ]
    return sorted(rows, key=lambda row: row["id"])


def _quarantine(dataset: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(dataset / "quarantine" / "part-00000.parquet").to_pylist())


def _sides(dataset: Path) -> dict[str, str]:
    return {row["id"]: row["split"] for row in _packed(dataset)}


def test_ids_come_from_file_and_row_where_no_column_has_them(tmp_path: Path) -> None:
    source = _csv(tmp_path / "t.csv", [{"label": "ab"[i % 2], "words": f"w {i}"} for i in range(10)])
    pack(source, str(tmp_path / "out"))
    assert [row["id"] for row in _packed(tmp_path / "out")] == [f"t.csv#{i}" for i in range(10)]


def test_weights_are_packed_and_checked(tmp_path: Path) -> None:
    records = [{"label": "ab"[i % 2], "words": f"w {i}", "weight": 0.5 * i} for i in range(10)]
    records[3]["weight"], records[4]["weight"] = -1, ""
    manifest = pack(_csv(tmp_path / "t.csv", records), str(tmp_path / "out"), settings=LENIENT)
    assert manifest.has_weights
    assert {r["id"]: r["weight"] for r in _packed(tmp_path / "out")}["t.csv#4"] == 1.0
    (bad,) = _quarantine(tmp_path / "out")
    assert (bad["row"], bad["field"], bad["reason"]) == (3, "weight", "value_nonfinite")


@pytest.mark.parametrize(
    "spelling", [("train", "val", "test"), ("Training", "VALID", " test "), ("train", "dev", "test")]
)
def test_splits_from_a_column(tmp_path: Path, spelling: tuple[str, str, str]) -> None:
    records = [{"label": "ab"[i % 2], "words": f"w {i}", "part": spelling[i // 10]} for i in range(30)]
    manifest = pack(_csv(tmp_path / "t.csv", records), str(tmp_path / "out"), split_column="part")
    assert [manifest.splits[s].rows for s in ("train", "val", "test")] == [10, 10, 10]
    assert [f.columns for f in manifest.fields] == [("words",)]


def test_a_split_without_records_is_noted_and_a_record_without_split_quarantined(tmp_path: Path) -> None:
    records = [{"label": "ab"[i % 2], "words": f"w {i}", "split": "train" if i else ""} for i in range(30)]
    manifest = pack(_csv(tmp_path / "t.csv", records), str(tmp_path / "out"), settings=LENIENT)
    assert manifest.splits["val"].rows == manifest.splits["test"].rows == 0
    assert "the split 'val' is empty" in manifest.notes
    assert "the splits are those of the column 'split'" in manifest.notes
    assert _quarantine(tmp_path / "out")[0]["reason"] == "column_missing"


def test_a_set_ratio_makes_the_splits_even_if_a_column_names_some(tmp_path: Path) -> None:
    records = [{"label": "ab"[i % 2], "words": f"w {i}", "split": "train"} for i in range(40)]
    settings = PackSettings(split_ratio=(0.5, 0.25, 0.25))
    manifest = pack(_csv(tmp_path / "t.csv", records), str(tmp_path / "out"), settings=settings)
    assert [manifest.splits[s].rows for s in ("train", "val", "test")] == [20, 10, 10]


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    records = [
        {"id": i, "label": "ab"[i % 2], "words": f"w {i}", "speaker": f"s{i % 10}"} for i in range(100)
    ]
    settings = PackSettings(split_method="grouped", group_column="speaker")
    manifest = pack(_csv(tmp_path / "t.csv", records), str(tmp_path / "out"), settings=settings)
    sides: dict[str, set[str]] = {}
    for shard in manifest.shards:
        for record_id in pq.read_table(tmp_path / "out" / shard.path).column("id").to_pylist():
            sides.setdefault(f"s{int(record_id) % 10}", set()).add(shard.split)
    assert all(len(side) == 1 for side in sides.values())
    assert [manifest.splits[s].rows for s in ("train", "val", "test")] == [80, 10, 10]


# --- splits that are made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.9, 0.1, 0.0), (1.0, 0.0, 0.0)])
def test_stratified_counts_are_exact_in_all_and_within_one_record_in_each_class(
    tmp_path: Path, ratio: tuple[float, float, float]
) -> None:
    sizes = {"a": 57, "b": 23, "c": 119, "d": 1}
    labels = [name for name, count in sizes.items() for _ in range(count)]
    source = _csv(tmp_path / "t.csv", [{"label": name, "words": f"w {i}"} for i, name in enumerate(labels)])
    manifest = pack(source, str(tmp_path / "out"), settings=PackSettings(split_ratio=ratio))
    assert [manifest.splits[s].rows for s in ("train", "val", "test")] == [round(200 * r) for r in ratio]
    for split, share in zip(("train", "val", "test"), ratio, strict=True):
        for name, count in sizes.items():
            assert abs(manifest.splits[split].classes[name] - share * count) < 1
        assert manifest.splits[split].rows == sum(manifest.splits[split].classes.values())
        assert (f"the split {split!r} is empty" in manifest.notes) == (share == 0)
    assert Counter(_sides(tmp_path / "out").values()) == {
        s: v.rows for s, v in manifest.splits.items() if v.rows
    }


def test_splits_by_hash_stay_as_they_are_when_records_come_and_go(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "label": "ab"[i % 2], "words": f"w {i}"} for i in range(400)]
    settings = PackSettings(split_method="hash")
    manifest = pack(_csv(tmp_path / "all.csv", rows), str(tmp_path / "all"), settings=settings)
    pack(_csv(tmp_path / "some.csv", rows[300:] + rows[:100]), str(tmp_path / "some"), settings=settings)
    sides = _sides(tmp_path / "all")
    assert _sides(tmp_path / "some") == {k: v for k, v in sides.items() if not 100 <= int(k[1:]) < 300}
    counts = [manifest.splits[s].rows for s in ("train", "val", "test")]
    assert sum(counts) == 400
    assert all(abs(count - 400 * share) < 30 for count, share in zip(counts, (0.8, 0.1, 0.1), strict=True))
    pack(str(tmp_path / "all.csv"), str(tmp_path / "other"), settings=settings.model_copy(update={"seed": 1}))
    assert _sides(tmp_path / "other") != sides


def test_records_without_a_group_are_groups_of_their_own(tmp_path: Path) -> None:
    rows = [{"label": "ab"[i % 2], "words": f"w {i}", "speaker": "" if i < 50 else "s"} for i in range(100)]
    settings = PackSettings(split_method="grouped", group_column="speaker", split_ratio=(0.6, 0.2, 0.2))
    manifest = pack(_csv(tmp_path / "t.csv", rows), str(tmp_path / "out"), settings=settings)
    assert [manifest.splits[s].rows for s in ("train", "val", "test")] == [60, 20, 20]
    sides = _sides(tmp_path / "out")
    assert len({sides[f"t.csv#{i}"] for i in range(50, 100)}) == 1


def test_settings_of_splitting_that_a_column_overrules_are_noted(tmp_path: Path) -> None:
    rows = [{"label": "ab"[i % 2], "words": f"w {i}", "part": "train"} for i in range(10)]
    manifest = pack(
        _csv(tmp_path / "t.csv", rows),
        str(tmp_path / "out"),
        split_column="part",
        settings=PackSettings(split_method="hash"),
    )
    assert manifest.splits["train"].rows == 10
    assert "pack.split_method had no effect: the splits are those of the column 'part'" in manifest.notes


# --- records that cannot be packed -----------------------------------------------------------------------------------


def test_a_split_column_with_other_names_among_the_splits_is_refused_not_ignored(tmp_path: Path) -> None:
    rows = [{"label": "ab"[i % 2], "words": f"w {i}", "split": "train"} for i in range(10)]
    rows[3]["split"] = rows[4]["split"] = "holdout"
    source = _csv(tmp_path / "t.csv", rows)
    with pytest.raises(DataError) as caught:
        pack(source, str(tmp_path / "out"))
    assert str(caught.value) == (
        "the split column 'split' has 2 record(s) with 'holdout'; expected one of train, training, val, valid, "
        "validation, dev, test. Rename them, or have the splits made: set --split-ratio, and no --split"
    )
    manifest = pack(source, str(tmp_path / "out"), settings=PackSettings(split_ratio=(0.8, 0.1, 0.1)))
    assert manifest.source_rows == 10


def test_one_class_or_no_training_records(tmp_path: Path) -> None:
    rows = [{"label": "a", "words": f"w {i}"} for i in range(10)]
    with pytest.raises(DataError, match="'label' has one class only, 'a': a classifier needs two"):
        pack(_csv(tmp_path / "one.csv", rows), str(tmp_path / "out"))
    rows = [{"label": "ab"[i % 2], "words": f"w {i}", "split": "test"} for i in range(10)]
    with pytest.raises(DataError, match="the train split is empty.*column 'split'"):
        pack(_csv(tmp_path / "test.csv", rows), str(tmp_path / "out"))
    rows = [{"label": "ab"[i % 2], "words": f"w {i}", "split": "holdout"} for i in range(10)]
    with pytest.raises(DataError, match=r"10 record\(s\) with 'holdout'; expected one of train, training"):
        pack(_csv(tmp_path / "odd.csv", rows), str(tmp_path / "out"), split_column="split")
    assert not (tmp_path / "out").exists()


def test_ids_and_labels_that_are_missing_or_repeat(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "label": "ab"[i % 2], "words": f"w {i}"} for i in range(40)]
    for index, changes in {3: {"id": " "}, 5: {"id": "r4"}, 7: {"label": ""}, 9: {"label": "  "}}.items():
        rows[index].update(changes)
    _csv(tmp_path / "raw" / "0.csv", rows[:30])
    _csv(tmp_path / "raw" / "1.csv", [{**rows[7], "label": "a"}, *rows[30:]])
    out = tmp_path / "out"
    manifest = pack(str(tmp_path / "raw"), str(out), settings=LENIENT)
    assert (manifest.source_rows, manifest.quarantined_rows, len(_packed(out))) == (41, 5, 36)
    found = [
        (r["source"], r["row"], r["id"], r["field"], r["reason"], r["message"]) for r in _quarantine(out)
    ]
    assert found == [
        ("0.csv", 3, "", "id", "id_missing", "the record has no id"),
        ("0.csv", 5, "r4", "id", "id_duplicate", "the id 'r4' is that of 0.csv row 4 too"),
        ("0.csv", 7, "r7", "label", "label_missing", "the record has no label"),
        ("0.csv", 9, "r9", "label", "label_missing", "the record has no label"),
        ("1.csv", 0, "r7", "id", "id_duplicate", "the id 'r7' is that of 0.csv row 7 too"),
    ]


def test_one_id_for_all_is_a_matter_of_the_budget_not_of_the_classes(tmp_path: Path) -> None:
    rows = [{"id": "same", "label": "ab"[i % 2], "words": f"w {i}"} for i in range(20)]
    with pytest.raises(BudgetExceededError, match="19 of 20 records .* id_duplicate 19"):
        pack(_csv(tmp_path / "t.csv", rows), str(tmp_path / "out"))
    assert len(_quarantine(tmp_path / "out")) == 19
    with pytest.raises(
        DataError,
        match=r"without the 19 rejected record\(s\) the label column 'label' has one class only, 'a'",
    ):
        pack(str(tmp_path / "t.csv"), str(tmp_path / "out"), settings=PackSettings(max_bad_fraction=1))


def test_a_train_split_that_was_rejected_whole(tmp_path: Path) -> None:
    rows = [{"label": "ab"[i % 2], "words": f"w {i}", "split": "test", "weight": 1} for i in range(20)]
    for row in rows[:4]:
        row.update(split="train", weight=-1)
    with pytest.raises(
        DataError, match=r"the train split is empty.*: 4 record\(s\) were rejected; the quarantine"
    ):
        pack(_csv(tmp_path / "t.csv", rows), str(tmp_path / "out"), settings=LENIENT)
    assert len(_quarantine(tmp_path / "out")) == 4
