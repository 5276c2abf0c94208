from __future__ import annotations

import sys
from pathlib import Path

import fsspec
import pytest

from xmodal_dist.dataset.schema import Field, parse_field
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.ingest.fields import Roles, choose_fields
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


def test_classes_that_could_be_splits_are_noted(tmp_path: Path) -> None:
    _touch(tmp_path, "train/cat/a.png", "test/dog/b.png", "extra/cat/c.png")
    source = read_source(str(tmp_path))
    assert source.table.column("label").to_pylist() == ["extra", "test", "train"]
    assert source.notes == (
        "the folder(s) 'test', 'train' are taken as classes, not as splits, for 'extra' beside them is no split",
    )


def test_files_beside_the_classes_of_a_split_have_no_label(tmp_path: Path) -> None:
    _touch(tmp_path, "train/cat/a.png", "train/dog/b.png", "test/1.png", "test/2.png", "docs/README.md")
    source = read_source(str(tmp_path))
    assert source.table.column("label").to_pylist() == ["cat", "dog"]
    assert source.table.column("split").to_pylist() == ["train", "train"]
    assert "2 file(s) '.png' left out: not of a known kind in a class folder" in source.notes


def test_a_file_whose_name_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    _touch(tmp_path, "cat/x.png", "cat/\udcff.png", "cat/\udcff")
    source = read_source(str(tmp_path))
    assert (source.rows, source.table.column("id").to_pylist()) == (2, ["cat/x"])
    assert [(r.source, r.reason) for r in source.rejected] == [(r"cat/\xff.png", "text_not_utf8")]
    assert source.notes == (r"1 file(s) '\\xff' left out: not of a known kind in a class folder",)


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
    for _ in range(2):  # empty, then with a file of no use
        with pytest.raises(
            DataError, match="holds neither tables .* nor class folders with files of a known kind"
        ):
            read_source(str(tmp_path))
        _touch(tmp_path, "cat/x.docx")


def test_class_folders_behind_a_uri() -> None:
    for name in ("cat/x.png", "dog/y.png"):
        with fsspec.open(f"memory://animals/{name}", "wb") as handle:
            handle.write(b"x")
    assert read_source("memory://animals").table.column("image").to_pylist() == ["cat/x.png", "dog/y.png"]


def test_videos_are_a_field_and_gifs_are_images_unless_one_asks_for_videos(tmp_path: Path) -> None:
    _touch(tmp_path, "run/a.mp4", "run/b.gif", "jump/c.WEBM", "jump/c.wav")
    source = read_source(str(tmp_path))
    assert [field.kind for field in source.fields] == ["audio", "image", "video"]
    assert source.table.column("image").to_pylist() == [None, None, "run/b.gif"]
    source = read_source(str(tmp_path), {"video", "audio"})
    assert [field.kind for field in source.fields] == ["audio", "video"]
    assert source.table.column("video").to_pylist() == ["jump/c.WEBM", "run/a.mp4", "run/b.gif"]


def test_a_field_of_a_folder_may_have_a_name_of_its_own(tmp_path: Path) -> None:
    _touch(tmp_path, "run/a.gif", "jump/b.gif")
    pytest.importorskip("av", reason="PyAV is not installed")
    roles = Roles("label", "id", None, None, None)
    for asked, columns in (("clip=video", ("video",)), ("clip=video:video", ("video",))):
        fields, _ = choose_fields(read_source(str(tmp_path), {"video"}), [parse_field(asked)], roles)
        assert fields == (Field(name="clip", kind="video", columns=columns),)
    with pytest.raises(UsageError, match="no column 'sound'"):
        choose_fields(read_source(str(tmp_path)), [parse_field("sound=audio")], roles)


def test_what_a_kind_needs_is_asked_for_before_anything_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path, "run/a.mp4", "jump/b.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"field 'video': .* pip install 'xmodal-dist\[video\]'"):
        choose_fields(read_source(str(tmp_path)), None, Roles("label", "id", None, None, None))
