from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from xmodal_dist.dataset.schema import Field
from xmodal_dist.errors import DataError
from xmodal_dist.ingest.pack import read_source


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_class_folders_with_files_of_one_stem_as_one_record(tmp_path: Path) -> None:
    _touch(tmp_path, "cat/x.png", "cat/x.wav", "cat/deep/y.JPG", "dog/x.wav")
    source = read_source(str(tmp_path))
    assert source.table.to_pylist() == [
        {"id": "cat/deep/y", "label": "cat", "audio": None, "image": "cat/deep/y.JPG"},
        {"id": "cat/x", "label": "cat", "audio": "cat/x.wav", "image": "cat/x.png"},
        {"id": "dog/x", "label": "dog", "audio": "dog/x.wav", "image": None},
    ]
    assert source.fields == (
        Field(name="audio", kind="audio", columns=("audio",)),
        Field(name="image", kind="image", columns=("image",)),
    )
    assert set(source.folders) == {str(tmp_path)}


def test_folders_of_splits_tell_the_split(tmp_path: Path) -> None:
    _touch(tmp_path, "train/cat/a.png", "train/dog/b.png", "Validation/cat/c.png")
    rows = read_source(str(tmp_path)).table.to_pylist()
    assert [(r["split"], r["label"]) for r in rows] == [
        ("Validation", "cat"),
        ("train", "cat"),
        ("train", "dog"),
    ]


def test_a_class_may_be_named_like_a_split(tmp_path: Path) -> None:
    _touch(tmp_path, "train/a.png", "plane/b.png")
    source = read_source(str(tmp_path))
    assert source.table.column("label").to_pylist() == ["plane", "train"]
    assert "split" not in source.table.column_names


def test_two_files_of_one_kind_and_stem_are_two_records(tmp_path: Path) -> None:
    _touch(tmp_path, "cat/x.jpg", "cat/x.png", "dog/x.png")
    assert read_source(str(tmp_path)).table.column("id").to_pylist() == ["cat/x", "cat/x.png", "dog/x"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    _touch(tmp_path, "cat/x.png", "cat/a.db", "dog/b.db", "loose.png", "cat/LICENSE")
    source = read_source(str(tmp_path))
    assert source.rows == 1
    assert [note.split(" left out")[0] for note in source.notes] == [
        "2 file(s) '.db'",
        "1 file(s) '.png'",
        "1 file(s) 'LICENSE'",
    ]


def test_a_folder_without_anything_to_pack(tmp_path: Path) -> None:
    _touch(tmp_path, "cat/x.docx")
    with pytest.raises(
        DataError, match="holds neither tables .* nor class folders with files of a known kind"
    ):
        read_source(str(tmp_path))


def test_class_folders_behind_a_uri() -> None:
    for name in ("cat/x.png", "dog/y.png"):
        with fsspec.open(f"memory://animals/{name}", "wb") as handle:
            handle.write(b"x")
    assert read_source("memory://animals").table.column("image").to_pylist() == ["cat/x.png", "dog/y.png"]
