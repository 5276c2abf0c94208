"""Packing: every record is packed or quarantined, equal sources give equal bytes, and errors say what to change."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import wave
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from xmodal_dist.dataset.manifest import Manifest, load_manifest
from xmodal_dist.dataset.schema import parse_field
from xmodal_dist.dataset.verify import verify_dataset
from xmodal_dist.errors import BudgetExceededError, DataError, UsageError
from xmodal_dist.ingest.pack import PackSettings, pack
from xmodal_dist.progress import ConsoleProgress

LENIENT = PackSettings(max_bad_fraction=0.5)


def _png(seed: int, side: int = 12) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(
        sink, "PNG"
    )
    return sink.getvalue()


def _wav(seed: int, rate_hz: int = 8000, samples: int = 800) -> bytes:
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.random.default_rng(seed).integers(-9000, 9000, samples).astype("<i2").tobytes())
    return sink.getvalue()


def _csv(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def _source(folder: Path, rows: int = 60) -> tuple[str, list[dict[str, Any]]]:
    """A CSV of images, recordings, sentences and numbers, and its rows to change."""
    records = []
    for index in range(rows):
        for name, payload in ((f"i/{index}.png", _png(index)), (f"a/{index}.wav", _wav(index))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(payload)
        records.append(
            {
                "id": f"r{index}",
                "label": "abc"[index % 3],
                "image": f"i/{index}.png",
                "audio": f"a/{index}.wav",
                "words": f"number {index} of a few words",
                "height": index * 0.5,
                "colour": ["red", "blue"][index % 2],
            }
        )
    return _csv(folder / "t.csv", records), records


def _packed(dataset: str | Path) -> list[dict[str, Any]]:
    manifest = load_manifest(str(dataset))
    rows = [row for shard in manifest.shards for row in pq.read_table(Path(dataset) / shard.path).to_pylist()]
    return sorted(rows, key=lambda row: row["id"])


def _quarantine(dataset: str | Path) -> list[dict[str, Any]]:
    return list(pq.read_table(Path(dataset) / "quarantine" / "part-00000.parquet").to_pylist())


def _files(dataset: Path) -> dict[str, bytes]:
    return {str(p.relative_to(dataset)): p.read_bytes() for p in sorted(dataset.rglob("*")) if p.is_file()}


def _assert_rows_add_up(manifest: Manifest, dataset: str | Path) -> None:
    assert manifest.source_rows == sum(s.rows for s in manifest.splits.values()) + manifest.quarantined_rows
    result = verify_dataset(str(dataset))
    assert (result.lost, result.duplicated, result.failed_checks) == (0, 0, [])


def test_every_value_arrives_under_its_source_name(tmp_path: Path) -> None:
    source, records = _source(tmp_path / "raw")
    manifest = pack(source, str(tmp_path / "out"))
    rows = {row["id"]: row for row in _packed(tmp_path / "out")}
    assert len(rows) == 60
    for index, record in enumerate(records):
        row = rows[record["id"]]
        assert row == {
            "id": f"r{index}",
            "image": _png(index),
            "audio": _wav(index),
            "words": record["words"],
            "height": record["height"],
            "colour": record["colour"],
            "label": record["label"],
        }
    assert {f.name: (f.kind, f.columns) for f in manifest.fields} == {
        "image": ("image", ("image",)),
        "audio": ("audio", ("audio",)),
        "words": ("text", ("words",)),
        "tabular": ("tabular", ("height", "colour")),
    }
    assert manifest.classes == ("a", "b", "c")
    assert {s: v.rows for s, v in manifest.splits.items()} == {"train": 48, "val": 6, "test": 6}
    assert manifest.splits["train"].classes == {"a": 16, "b": 16, "c": 16}
    _assert_rows_add_up(manifest, tmp_path / "out")


def test_equal_sources_give_equal_bytes_wherever_they_are(tmp_path: Path) -> None:
    source, _ = _source(tmp_path / "raw")
    shutil.copytree(tmp_path / "raw", tmp_path / "elsewhere" / "raw")
    (tmp_path / "raw" / "i" / "3.png").write_bytes(b"")
    (tmp_path / "elsewhere" / "raw" / "i" / "3.png").write_bytes(b"")
    pack(source, str(tmp_path / "one"), settings=LENIENT)
    pack(str(tmp_path / "elsewhere" / "raw" / "t.csv"), str(tmp_path / "two"), settings=LENIENT)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    threads = LENIENT.model_copy(update={"num_threads": 1})
    pack(source, str(tmp_path / "three"), settings=threads)
    assert _files(tmp_path / "one") == _files(tmp_path / "three")
    assert not any(str(tmp_path).encode() in content for content in _files(tmp_path / "one").values())
    pack(source, str(tmp_path / "four"), settings=PackSettings(max_bad_fraction=0.5, seed=1))
    assert _files(tmp_path / "one") != _files(tmp_path / "four")


def test_all_forms_of_a_source_give_the_same_records(tmp_path: Path) -> None:
    source, records = _source(tmp_path / "raw", rows=30)
    pack(source, str(tmp_path / "csv"))
    raw = tmp_path / "raw"
    inline = "data:image/png;base64," + base64.b64encode((raw / "i/0.png").read_bytes()).decode()
    lines = [
        {**r, "image": inline if i == 0 else f"file://{raw}/{r['image']}"} for i, r in enumerate(records)
    ]
    (raw / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pack(str(raw / "t.jsonl"), str(tmp_path / "jsonl"))
    columns: dict[str, list[Any]] = {name: [r[name] for r in records] for name in records[0]}
    columns["image"] = [(raw / name).read_bytes() for name in columns["image"]]
    columns["audio"] = [{"bytes": (raw / name).read_bytes(), "path": None} for name in columns["audio"]]
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=7)
    pack(str(tmp_path / "t.parquet"), str(tmp_path / "parquet"))
    expected = _packed(tmp_path / "csv")
    assert _packed(tmp_path / "jsonl") == expected
    assert _packed(tmp_path / "parquet") == expected


def test_class_folders_pack_with_their_splits(tmp_path: Path) -> None:
    for index in range(24):
        place = tmp_path / "raw" / ["train", "val", "test"][index // 8] / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.png").write_bytes(_png(index))
        if index % 4:
            (place / f"{index}.wav").write_bytes(_wav(index))
    manifest = pack(str(tmp_path / "raw"), str(tmp_path / "out"))
    assert {s: (v.rows, v.missing) for s, v in manifest.splits.items()} == {
        s: (8, {"audio": 2, "image": 0}) for s in ("train", "val", "test")
    }
    assert _packed(tmp_path / "out")[0]["id"] == "test/a/16"
    _assert_rows_add_up(manifest, tmp_path / "out")


def test_source_and_output_may_be_uris() -> None:
    for index in range(20):
        with fsspec.open(f"memory://raw/{'ab'[index % 2]}/{index}.png", "wb") as handle:
            handle.write(_png(index))
    manifest = pack("memory://raw", "memory://packed")
    assert load_manifest("memory://packed") == manifest
    assert verify_dataset("memory://packed").failed_checks == []
    with pytest.raises(UsageError, match="--overwrite"):
        pack("memory://raw", "memory://packed")
    assert pack("memory://raw", "memory://packed", overwrite=True) == manifest


# --- bad input, read as a user would -------------------------------------------------------------------------------


def test_five_percent_broken_records(tmp_path: Path) -> None:
    """The default budget fails the job and leaves the list; a larger one packs the rest, and every row is somewhere."""
    source, records = _source(tmp_path / "raw", rows=200)
    raw = tmp_path / "raw"
    (raw / "i/10.png").write_bytes(_png(10)[:60])
    (raw / "i/11.png").write_bytes(b"")
    (raw / "i/12.png").write_bytes(b"not an image at all")
    (raw / "i/13.png").unlink()
    (raw / "a/14.wav").write_bytes(_wav(14, samples=0))
    (raw / "a/15.wav").write_bytes(b"RIFF")
    records[16]["label"] = ""
    records[17]["id"] = "r18"
    lines = Path(_csv(raw / "t.csv", records)).read_bytes().split(b"\r\n")
    lines[20] = lines[20].replace(b"words", b"w\xf6rter")
    lines[21] = lines[21] + b",one more"
    (raw / "t.csv").write_bytes(b"\r\n".join(lines))
    out = tmp_path / "out"
    with pytest.raises(BudgetExceededError) as caught:
        pack(source, str(out))
    assert caught.value.exit_code == 65
    message = str(caught.value)
    assert "10 of 200 records (5.00%) were rejected, more than pack.max_bad_fraction=0.01" in message
    assert "t.csv row" in message
    assert list(_files(out)) == ["quarantine/part-00000.parquet"]
    manifest = pack(source, str(out), settings=PackSettings(max_bad_fraction=0.1))
    assert (manifest.source_rows, manifest.quarantined_rows) == (200, 10)
    _assert_rows_add_up(manifest, out)
    reasons = {(r["row"], r["field"], r["reason"]) for r in _quarantine(out)}
    assert reasons == {
        (10, "image", "media_truncated"),
        (11, "image", "media_empty"),
        (12, "image", "media_unrecognised"),
        (13, "image", "uri_not_found"),
        (14, "audio", "audio_zero_length"),
        (15, "audio", "media_unrecognised"),
        (16, "label", "label_missing"),
        (18, "id", "id_duplicate"),
        (19, "words", "text_not_utf8"),
        (20, "", "row_unreadable"),
    }
    assert all(r["source"] == "t.csv" and r["message"] for r in _quarantine(out))
    packed = {row["id"] for row in _packed(out)} | {r["id"] for r in _quarantine(out)}
    assert packed | {"r17", "r19", "r20", ""} == {r["id"] for r in records} | {"", "r17"}


def test_five_percent_broken_lines_of_json(tmp_path: Path) -> None:
    """As above for JSON lines: invalid ones, ones that are not UTF-8 or no objects, and what only packing finds."""
    (tmp_path / "raw").mkdir()
    lines = [
        json.dumps({"id": f"r{i}", "label": "ab"[i % 2], "image": f"{i % 7}.png", "words": f"w {i}"}).encode()
        for i in range(100)
    ]
    for index in range(7):
        (tmp_path / "raw" / f"{index}.png").write_bytes(_png(index))
    lines[10] = lines[10][:-5]
    lines[20] = lines[20].replace(b'"w 20"', b'"w \xe4"')
    lines[30] = b"[1, 2]"
    lines[40] = lines[40].replace(b".png", b".gone.png")
    lines[50] = lines[50].replace(b'"label": "a"', b'"label": null')
    source = tmp_path / "raw" / "t.jsonl"
    source.write_bytes(b"\n".join(lines))
    out = tmp_path / "out"
    with pytest.raises(BudgetExceededError, match=r"5 of 100 records \(5.00%\) were rejected"):
        pack(str(source), str(out))
    manifest = pack(str(source), str(out), settings=PackSettings(max_bad_fraction=0.1))
    assert (manifest.source_rows, manifest.quarantined_rows) == (100, 5)
    _assert_rows_add_up(manifest, out)
    assert [(r["row"], r["id"], r["field"], r["reason"]) for r in _quarantine(out)] == [
        (10, "", "", "row_unreadable"),
        (20, "", "", "text_not_utf8"),
        (30, "", "", "row_unreadable"),
        (40, "r40", "image", "uri_not_found"),
        (50, "r50", "label", "label_missing"),
    ]
    assert [r["message"] for r in _quarantine(out)][1:4] == [
        "save the file as UTF-8",
        "not a JSON object: expected a JSON object, found list",
        "'5.gone.png' does not exist",
    ]


def test_a_missing_or_empty_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere.csv' does not exist"):
        pack(str(tmp_path / "nowhere.csv"), str(tmp_path / "out"))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match="empty.csv is empty"):
        pack(str(tmp_path / "empty.csv"), str(tmp_path / "out"))
    (tmp_path / "header.csv").write_text("id,label\n")
    with pytest.raises(DataError, match="header.csv' has no records"):
        pack(str(tmp_path / "header.csv"), str(tmp_path / "out"))
    (tmp_path / "broken.jsonl").write_text("{\n}\n")
    with pytest.raises(BudgetExceededError, match="2 of 2 records"):
        pack(str(tmp_path / "broken.jsonl"), str(tmp_path / "out"))
    with pytest.raises(DataError, match="none of the 2 records of .*broken.jsonl' can be read"):
        pack(str(tmp_path / "broken.jsonl"), str(tmp_path / "out"), settings=PackSettings(max_bad_fraction=1))


def test_an_output_that_holds_something(tmp_path: Path) -> None:
    source, _ = _source(tmp_path / "raw", rows=20)
    with pytest.raises(UsageError, match="already holds something else"):
        pack(source, str(tmp_path / "raw"), overwrite=True)
    out = str(tmp_path / "out")
    manifest = pack(source, out)
    with pytest.raises(UsageError, match="already holds a dataset.*--overwrite"):
        pack(source, out)
    with pytest.raises(UsageError, match="is a file; the dataset needs a folder"):
        pack(source, source)
    before = _files(Path(out))
    mistakes: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (UsageError, "did you mean 'label'", {"label": "labels"}),
        (DataError, "the split column 'colour' has 20 record", {"split_column": "colour"}),
        (UsageError, "the source .* lies in .*, the folder to write to", {"source": f"{out}/data/*.parquet"}),
    ]
    for error, message, arguments in mistakes:
        with pytest.raises(error, match=message):
            pack(arguments.pop("source", source), out, overwrite=True, **arguments)
        assert _files(Path(out)) == before, "a typing error cost the old dataset"
    assert load_manifest(out) == manifest
    smaller, _ = _source(tmp_path / "smaller", rows=10)
    assert pack(smaller, out, overwrite=True).source_rows == 10
    _assert_rows_add_up(load_manifest(out), out)


def test_an_interrupted_run_leaves_no_dataset(tmp_path: Path) -> None:
    source, _ = _source(tmp_path / "raw", rows=60)

    def interrupt(done: int, rejected: int, total: int) -> None:
        if done == 55:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, str(tmp_path / "out"), progress=interrupt)
    assert _files(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split_ratio": (0.8, 0.1, 0.2)}, "three shares that sum to 1"),
        ({"split_ratio": (0.0, 0.5, 0.5)}, "the first above 0"),
        ({"split_method": "grouped"}, "need each other"),
        ({"group_column": "speaker"}, "need each other"),
        ({"max_bad_frac": 0.1}, "did you mean 'max_bad_fraction'"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PackSettings(**values)


def test_progress_counts_every_record_and_shows_a_line(tmp_path: Path) -> None:
    source, _ = _source(tmp_path / "raw", rows=40)
    (tmp_path / "raw" / "i/1.png").unlink()
    shown = io.StringIO()
    console = Console(file=shown)
    with ConsoleProgress("packing", console) as progress:
        pack(source, str(tmp_path / "out"), settings=LENIENT, progress=progress)
    assert "packing: 40/40 records" in shown.getvalue()
    assert "1 quarantined" in shown.getvalue()


# --- the development data, whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [("image=image", "audio=audio"), ()])
def test_digits_av_packs_whole(shared_data: Path, tmp_path: Path, fields: tuple[str, ...]) -> None:
    source = str(shared_data / "digits_av" / "manifest.csv")
    manifest = pack(
        source, str(tmp_path / "out"), fields=[parse_field(f) for f in fields] or None, split_column="split"
    )
    assert {s: v.rows for s, v in manifest.splits.items()} == {"train": 2400, "val": 300, "test": 300}
    assert (manifest.source_rows, manifest.quarantined_rows) == (3000, 0)
    assert manifest.classes == tuple("0123456789")
    if fields:
        pack(source, str(tmp_path / "again"), fields=manifest.fields, split_column="split")
        assert _files(tmp_path / "out") == _files(tmp_path / "again")
    kinds = {f.name: f.kind for f in manifest.fields}
    assert kinds["image"] == "image"
    assert kinds["audio"] == "audio"
    _assert_rows_add_up(manifest, tmp_path / "out")


EMOJI_FIELDS = (
    "image=image",
    "image_noto=image",
    "text=text:title,keywords",
    "tabular=tabular:unicode_version,emoji_version,drawn_year,n_codepoints,is_zwj_sequence,has_variation_selector,"
    "supports_skin_tone,default_text_style",
)


@pytest.mark.parametrize("fields", [EMOJI_FIELDS, ()])
def test_emoji_groups_packs_whole(shared_data: Path, tmp_path: Path, fields: tuple[str, ...]) -> None:
    source = str(shared_data / "emoji_groups" / "manifest.jsonl")
    if not fields:
        pytest.importorskip("av", reason="the clips are read by PyAV")
    manifest = pack(
        source, str(tmp_path / "out"), fields=[parse_field(f) for f in fields] or None, split_column="split"
    )
    assert {s: v.rows for s, v in manifest.splits.items()} == {"train": 1475, "val": 212, "test": 423}
    assert (manifest.source_rows, manifest.quarantined_rows) == (2110, 0)
    assert sum(v.missing["image_noto"] for v in manifest.splits.values()) == 2110 - 1906
    if not fields:
        columns = {c for f in manifest.fields for c in f.columns}
        assert not columns & {"char", "hexcode"}
        assert sum(v.missing["video"] for v in manifest.splits.values()) == 2110 - 734
        assert any("'subgroup' tells the label in every record" in note for note in manifest.notes)
    _assert_rows_add_up(manifest, tmp_path / "out")
