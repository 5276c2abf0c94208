"""What each column is for: inferred, asked for, or refused with the name that was perhaps meant."""

from __future__ import annotations

import base64
import datetime
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xmodal_dist.dataset.schema import Field, parse_field
from xmodal_dist.errors import UsageError
from xmodal_dist.ingest.fields import Roles, choose_fields, find_roles
from xmodal_dist.ingest.pack import pack, read_source


def _png(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _rows(count: int, /, **columns: Any) -> list[dict[str, Any]]:
    """Records with the label "a" or "b" and columns that are functions of the index."""
    return [
        {"label": "ab"[i % 2], **{name: value(i) for name, value in columns.items()}} for i in range(count)
    ]


def _chosen(
    source: str, asked: list[Field] | None = None, label: str | None = None, take_split: bool = True
) -> tuple[Roles, tuple[Field, ...], list[str]]:
    read = read_source(source)
    roles = find_roles(
        read, label=label, id_column=None, split_column=None, group=None, take_split=take_split
    )
    return roles, *choose_fields(read, asked, roles)


def test_kinds_are_inferred_from_values(tmp_path: Path) -> None:
    rows = _rows(
        60,
        photo=lambda i: f"p/{i}.JPG",
        link=lambda i: f"s3://bucket/{i}.flac?version={i}",
        drawing=lambda i: f"data:image/png;base64,{base64.b64encode(_png(i)).decode()}",
        story=lambda i: f"a few words about number {i}",
        height=lambda i: i * 0.37,
        count=lambda i: i % 7,
        colour=lambda i: ("red", "green", "blue")[i % 3],
        flag=lambda i: i % 3 == 0,
    )
    _, fields, notes = _chosen(_jsonl(tmp_path / "t.jsonl", rows))
    assert {f.name: (f.kind, f.columns) for f in fields} == {
        "photo": ("image", ("photo",)),
        "link": ("audio", ("link",)),
        "drawing": ("image", ("drawing",)),
        "story": ("text", ("story",)),
        "tabular": ("tabular", ("height", "count", "colour", "flag")),
    }
    assert notes == []


def test_kinds_are_inferred_from_bytes_and_times(tmp_path: Path) -> None:
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(days=i // 2) for i in range(40)]
    columns = {
        "label": ["a", "b"] * 20,
        "drawing": [None] * 10 + [_png(i) for i in range(30)],
        "story": [f"words about {i} in bytes".encode() for i in range(40)],
        "day": days,
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    _, fields, _ = _chosen(str(tmp_path / "t.parquet"))
    assert {f.name: f.kind for f in fields} == {"drawing": "image", "story": "text", "tabular": "tabular"}


def test_columns_with_a_role_are_taken_by_name_and_are_no_fields(tmp_path: Path) -> None:
    rows = _rows(
        20,
        id=str,
        split=lambda i: ("Train", "dev")[i // 15],
        weight=lambda i: 1 + i,
        words=lambda i: f"w {i}",
    )
    roles, fields, _ = _chosen(_jsonl(tmp_path / "t.jsonl", rows))
    assert roles == Roles(label="label", id="id", split="split", group=None, weight="weight")
    assert [f.name for f in fields] == ["words"]


def test_a_split_column_that_is_not_used_is_noted(tmp_path: Path) -> None:
    rows = _rows(20, split=lambda i: ("here", "there")[i // 15], words=lambda i: f"w {i}")
    roles, fields, notes = _chosen(_jsonl(tmp_path / "t.jsonl", rows))
    assert (roles.split, [f.name for f in fields]) == (None, ["words"])
    assert notes == ["column 'split' left out: the splits are made"]
    rows = _rows(20, split=lambda i: "train", words=lambda i: f"w {i}")
    roles, _, notes = _chosen(_jsonl(tmp_path / "t.jsonl", rows), take_split=False)
    assert (roles.split, notes) == (None, ["column 'split' left out: the splits are made"])


def test_weights_that_are_no_numbers_are_noted(tmp_path: Path) -> None:
    rows = _rows(20, weight=lambda i: "heavy", words=lambda i: f"w {i}")
    roles, _, notes = _chosen(_jsonl(tmp_path / "t.jsonl", rows))
    assert roles.weight is None
    assert notes == ["column 'weight' left out: the name is reserved; rename it to use it"]


def test_a_few_values_that_keep_a_column_from_being_numbers_are_named(tmp_path: Path) -> None:
    lines = [f"{'ab'[i % 2]},{'tall' if i == 5 else i % 9},{i % 5 or 'NA'},w {i}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["label,height,depth,words", *lines]))
    _, fields, notes = _chosen(str(tmp_path / "t.csv"))
    assert {c for f in fields for c in f.columns} == {"height", "depth", "words"}
    assert notes == ["column 'height' is not taken as numbers: 1 of its 60 values are none, such as 'tall'"]


def test_columns_that_tell_nothing_or_all_are_named(tmp_path: Path) -> None:
    rows = _rows(
        60,
        words=lambda i: f"some words {i * 7919 % 7}",
        serial=lambda i: i + 1000,
        code=lambda i: f"X{i:04}",
        always=lambda i: "same",
        never=lambda i: "",
        leak=lambda i: "uv"[i % 2],
        clip=lambda i: f"c/{i}.xyz",
    )
    _, fields, notes = _chosen(_jsonl(tmp_path / "t.jsonl", rows))
    assert {c for f in fields for c in f.columns} == {"words", "leak"}
    assert sorted(notes) == [
        "column 'always' left out: it has the same value in every record",
        "column 'clip' left out: its values look like names of files of no known kind",
        "column 'code' left out: its words are all different, as of an identifier",
        "column 'leak' tells the label in every record: leave it out if it derives from the label",
        "column 'never' left out: it has no values",
        "column 'serial' left out: its whole numbers are all different, as of an identifier",
    ]


def test_fields_that_are_asked_for_replace_the_inferred_ones(tmp_path: Path) -> None:
    rows = _rows(
        40,
        title=lambda i: f"title {i}",
        keywords=lambda i: ["p", f"k{i}"],
        height=lambda i: i * 0.5,
        code=lambda i: f"X{i}",
    )
    source = _jsonl(tmp_path / "t.jsonl", rows)
    asked = [parse_field("text=text:title,keywords"), parse_field("code=tabular:height,code")]
    assert _chosen(source, asked)[1:] == (tuple(asked), [])
    manifest = pack(source, str(tmp_path / "out"), fields=asked)
    assert manifest.fields == tuple(asked)
    schema = pq.read_schema(tmp_path / "out" / manifest.shards[0].path)
    assert {f.name: str(f.type) for f in schema} == {
        "id": "string",
        "title": "string",
        "keywords": "string",
        "height": "double",
        "code": "string",
        "label": "string",
    }


def test_numbers_in_text_are_numbers_for_a_table_and_text_for_text(tmp_path: Path) -> None:
    lines = [f"{'ab'[i % 2]},{i % 9},{i % 5}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["label,height,words", *lines]))
    manifest = pack(
        str(tmp_path / "t.csv"),
        str(tmp_path / "out"),
        fields=[parse_field("height=tabular"), parse_field("words=text")],
    )
    schema = pq.read_schema(tmp_path / "out" / manifest.shards[0].path)
    assert (str(schema.field("height").type), str(schema.field("words").type)) == ("int64", "string")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "lable"}, "--label: the source has no column 'lable'; did you mean 'label'"),
        ({"id_column": "ix"}, "--id: the source has no column 'ix'; did you mean 'id'"),
        ({"split_column": "zzz"}, "--split: the source has no column 'zzz'; its columns: id, label, image, "),
        ({"fields": ["x=image:imgae"]}, "field 'x': the source has no column 'imgae'; did you mean 'image'"),
        ({"fields": ["x=picture:image"]}, "unknown field kind 'picture'"),
        ({"fields": ["x=image:height,image"]}, "reads one column, not 2"),
        (
            {"fields": ["x=image:height"]},
            "column 'height' holds double; expected bytes, paths or URIs of image",
        ),
        ({"fields": ["x=text:label"]}, "reads the column 'label', a reserved name; rename the column"),
        ({"fields": ["x=text:words", "x=text:colour"]}, "two fields are named 'x'"),
        ({"fields": ["x=text:words", "y=text:words"]}, "column 'words' belongs to both 'x' and 'y'"),
        ({"label": "colour", "fields": ["colour=text"]}, "'colour', which is the label"),
    ],
)
def test_a_column_or_kind_that_is_not_there(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    columns: list[dict[str, Any]] = [
        {
            "id": str(i),
            "label": "ab"[i % 2],
            "image": f"{i}.png",
            "words": f"number {i}",
            "height": i * 0.5,
            "colour": ("red", "blue")[i % 2],
        }
        for i in range(10)
    ]
    if "fields" in arguments:
        arguments = {**arguments, "fields": [parse_field(text) for text in arguments["fields"]]}
    with pytest.raises(UsageError) as caught:
        pack(_jsonl(tmp_path / "t.jsonl", columns), str(tmp_path / "out"), **arguments)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_missing_label_column_lists_what_could_be_it(tmp_path: Path) -> None:
    rows = [{"kind": "ab"[i % 2], "words": f"w {i}", "same": 1, "era": i % 3} for i in range(10)]
    with pytest.raises(UsageError) as caught:
        _chosen(_jsonl(tmp_path / "t.jsonl", rows))
    assert str(caught.value) == (
        "the source has no column 'label'; name the column of the class with --label, perhaps one of: kind, era"
    )
    assert _chosen(str(tmp_path / "t.jsonl"), label="kind")[0].label == "kind"
    with pytest.raises(UsageError, match="perhaps one of: it has no columns"):
        _chosen(_jsonl(tmp_path / "none.jsonl", [{}, {}]))


def test_a_label_of_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [b"a", b"b"], "words": ["x", "y"]}), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="--label: column 'label' holds bytes; store it as text or numbers"):
        _chosen(str(tmp_path / "t.parquet"))


def test_no_column_that_could_be_a_field(tmp_path: Path) -> None:
    table = pa.table({"label": ["a", "b"], "boxes": [[1], [2]], "always": ["x", "x"]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UsageError) as caught:
        _chosen(str(tmp_path / "t.parquet"))
    assert "column 'boxes' left out: its type is list<element: int64>" in str(caught.value)
    assert "column 'always' left out: it has the same value in every record" in str(caught.value)
    with pytest.raises(UsageError, match="no column of the source can be a field: there is no other"):
        _chosen(_jsonl(tmp_path / "t.jsonl", _rows(4)))
