from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from xmodal_dist.dataset.inspect import Inspection, inspect_dataset, render_inspection
from xmodal_dist.dataset.manifest import load_manifest, save_manifest
from xmodal_dist.dataset.schema import parse_field
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.ingest.pack import PackSettings, pack


def _png(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def _inspect(folder: Path, records: list[dict[str, Any]], *fields: str, bad: float = 0.0) -> Inspection:
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "t.jsonl"
    table.write_text("".join(json.dumps(record) + "\n" for record in records))
    target = str(folder / "dataset")
    pack(
        str(table),
        target,
        fields=[parse_field(f) for f in fields],
        settings=PackSettings(max_bad_fraction=bad),
    )
    return inspect_dataset(target)


def _texts(inspection: Inspection, level: str = "warning") -> str:
    return "\n".join(finding.text for finding in inspection.findings if finding.level == level)


def _shown(inspection: Inspection) -> str:
    sink = io.StringIO()
    console = Console(file=sink, width=160)
    for part in render_inspection(inspection):
        console.print(part)
    return sink.getvalue()


def _record(index: int, split: str, label: str, **values: Any) -> dict[str, Any]:
    return {"id": f"r{index}", "split": split, "label": label, "words": f"words {index}", **values}


def _balanced(rows: int) -> list[dict[str, Any]]:
    splits = ["train", "val", "test"]
    return [_record(i, splits[i % 3], "ab"[i // 3 % 2]) for i in range(rows)]


def test_a_sound_dataset_has_no_warnings_and_shows_as_tables(tmp_path: Path) -> None:
    inspection = _inspect(tmp_path, _balanced(300), "words=text")
    assert _texts(inspection) == ""
    assert inspection.splits == {"train": 100, "val": 100, "test": 100}
    assert inspection.classes == {
        "a": dict.fromkeys(inspection.splits, 50),
        "b": dict.fromkeys(inspection.splits, 50),
    }
    assert inspection.fields == [
        {
            "name": "words",
            "kind": "text",
            "columns": ["words"],
            "missing": dict.fromkeys(inspection.splits, 0.0),
        }
    ]
    assert [shard["rows"] for shard in inspection.shards] == [100, 100, 100]
    assert json.loads(json.dumps(dataclasses.asdict(inspection)))["source_rows"] == 300
    shown = _shown(inspection)
    assert "words" in shown
    assert "data/train-00000.parquet" in shown
    assert "300 records read = 300 packed + 0 quarantined" in shown


def test_what_looks_wrong_is_said(tmp_path: Path) -> None:
    records = [_record(i, "train", "often", extra=None if i % 3 else "there") for i in range(60)]
    records += [_record(100 + i, "train", "rare") for i in range(2)]
    records += [_record(200 + i, "test", "unseen") for i in range(3)]
    found = _texts(_inspect(tmp_path, records, "words=text", "extra=text"))
    assert "classes are unbalanced: 'often' has 60 training records, 'unseen' 0" in found
    assert "class 'unseen' has no training record, but 3 in test: it will never be predicted" in found
    assert "class 'rare' has only 2 training records" in found
    assert "field 'extra' is missing in 69% of the records" in found
    assert "there is no val split" in found
    assert "the test split has only 3 records" in found


def test_duplicates_across_splits_are_found_as_a_whole_and_by_image(tmp_path: Path) -> None:
    records = _balanced(150)
    for index, record in enumerate(records):
        (tmp_path / f"{index}.png").write_bytes(_png(index))
        record["picture"] = f"{index}.png"
    records[1].update(words=records[0]["words"], picture="0.png")  # val 1 equals train 0
    records[5].update(picture="3.png")  # test 5 shows the image of train 3
    records[6].update(words=records[9]["words"], picture="9.png")  # both in train: no leak
    found = _texts(_inspect(tmp_path, records, "words=text", "picture=image"))
    assert "1 records of val are equal to records of train, for example 'r1' and 'r0'" in found
    assert "1 records of test are equal to records of train in 'picture', for example 'r5' and 'r3'" in found
    assert found.count("are equal") == 2


def test_records_without_any_value_are_no_duplicates(tmp_path: Path) -> None:
    records = _balanced(300)
    for index in (0, 1, 2):
        records[index]["words"] = None
    assert "are equal" not in _texts(_inspect(tmp_path, records, "words=text"))


def test_the_quarantine_is_counted(tmp_path: Path) -> None:
    records = [*_balanced(300), _record(900, "train", "")]
    inspection = _inspect(tmp_path, records, "words=text", bad=0.1)
    assert inspection.quarantined == {"label_missing": 1}
    assert "1 records (0.33%) are in the quarantine" in _texts(inspection, "note")


def test_splits_are_shown_in_their_usual_order(tmp_path: Path) -> None:
    inspection = _inspect(tmp_path, _balanced(30), "words=text")
    assert list(inspection.splits) == ["train", "val", "test"]
    for counts in (*inspection.classes.values(), *(field["missing"] for field in inspection.fields)):
        assert list(counts) == ["train", "val", "test"]


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    records = [_record(i, "train", ("[red]", "[/x]")[i % 2]) for i in range(20)]
    records += [_record(90, "test", "[bold]")]
    shown = _shown(_inspect(tmp_path, records, "words=text"))
    for name in ("[red]", "[/x]", "class '[bold]' has no training record"):
        assert name in shown


def test_many_classes_and_findings_are_counted_not_listed(tmp_path: Path) -> None:
    inspection = _inspect(tmp_path, [_record(i, "train", f"c{i:03d}") for i in range(100)], "words=text")
    assert len(inspection.classes) == 100
    few = [f for f in inspection.findings if "has only 1 training records" in f.text]
    assert len(few) == 100
    shown = _shown(inspection)
    assert "... 60 more classes" in shown
    assert f"... {len(inspection.findings) - 40} more findings" in shown
    assert "there is no val split" in shown


def test_a_large_row_group_is_pointed_out(tmp_path: Path) -> None:
    _inspect(tmp_path, _balanced(300), "words=text")
    manifest = load_manifest(str(tmp_path / "dataset"))
    shard = manifest.shards[0]
    for size, expected in (
        (64 << 20, ""),
        (100 << 20, "the largest row group has 100 MiB: pack with a smaller"),
    ):
        groups = (shard.row_groups[0].model_copy(update={"bytes": size}), *shard.row_groups[1:])
        shards = (shard.model_copy(update={"row_groups": groups}), *manifest.shards[1:])
        save_manifest(str(tmp_path / "dataset"), manifest.model_copy(update={"shards": shards}))
        assert _texts(inspect_dataset(str(tmp_path / "dataset"))).startswith(expected)


def test_findings_are_objects_in_json(tmp_path: Path) -> None:
    inspection = _inspect(tmp_path, _balanced(30), "words=text")
    findings = json.loads(json.dumps(dataclasses.asdict(inspection)))["findings"]
    assert {
        "level": "warning",
        "text": "the val split has only 10 records: its figures are rough",
    } in findings


@pytest.mark.parametrize("damage", ["missing", "truncated", "renamed"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    _inspect(tmp_path, _balanced(30), "words=text")
    path = tmp_path / "dataset" / "data" / "val-00000.parquet"
    payload = path.read_bytes()
    path.write_bytes(payload[:-20] if damage == "truncated" else payload.replace(b"words", b"wordz"))
    if damage == "missing":
        path.unlink()
    with pytest.raises(
        DataError, match=r"data/val-00000.parquet cannot be read: .*`xmodal verify .*dataset`"
    ):
        inspect_dataset(str(tmp_path / "dataset"))


def test_a_damaged_quarantine_is_named(tmp_path: Path) -> None:
    _inspect(tmp_path, [*_balanced(300), _record(900, "train", "")], "words=text", bad=0.1)
    (tmp_path / "dataset" / "quarantine" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"quarantine/part-00000.parquet cannot be read"):
        inspect_dataset(str(tmp_path / "dataset"))


def test_no_dataset_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a packed dataset"):
        inspect_dataset(str(tmp_path))
