"""Media named by path or URI become bytes; what cannot be fetched is an error of its row, and null."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from xmodal_dist.dataset.schema import Field
from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities.fields import FieldSpec, field_settings
from xmodal_dist.pipeline.fetch import fetch_media


def _spec(field: Field) -> FieldSpec:
    return FieldSpec(field.name, field.columns, field_settings(field.name, field.kind, {}), Fitted())


PICTURE = _spec(Field(name="picture", kind="image", columns=("file",)))
CAPTION = _spec(Field(name="caption", kind="text", columns=("words",)))


@pytest.mark.parametrize("threads", [1, 4])
def test_paths_and_uris_become_bytes(tmp_path: Path, threads: int) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"relative")
    (tmp_path / "b.png").write_bytes(b"absolute")
    with fsspec.open("memory://bucket/c.png", "wb") as handle:
        handle.write(b"remote")
    files = ["a.png", str(tmp_path / "b.png"), "memory://bucket/c.png", None, "gone.png", "nowhere://x/y.png"]
    table = pa.table({"words": ["a.png"] * 6, "file": files})
    fetched, errors = fetch_media(table, [CAPTION, PICTURE], str(tmp_path / "sub"), threads)
    assert fetched.column("file").to_pylist() == [b"relative", b"absolute", b"remote", None, None, None]
    assert fetched.column("words").equals(table.column("words")), "text is not a path"
    assert fetched.column_names == table.column_names
    assert [(e.row, e.field, e.error.reason) for e in errors] == [
        (4, "picture", "uri_not_found"),
        (5, "picture", "fetch_failed"),
    ]
    assert "gone.png" in errors[0].error.detail


def test_bytes_stay_as_they_are() -> None:
    table = pa.table({"file": pa.array([b"x", None], pa.binary())})
    fetched, errors = fetch_media(table, [PICTURE], "/nowhere", 2)
    assert fetched is table and errors == []
