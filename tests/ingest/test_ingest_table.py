"""Reading tables: what is a row, what is rejected, and what types come out."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.ingest.media import ByteSpool
from xmodal_dist.ingest.pack import read_source
from xmodal_dist.ingest.source import Source, as_numbers, as_text
from xmodal_dist.ingest.table import find_tables


def _read(folder: Path, name: str, content: str | bytes) -> Source:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_source(str(path))


def _rejected(source: Source) -> list[tuple[int, str]]:
    return [(r.row, r.reason) for r in source.rejected]


def test_csv_values_are_text_and_empty_cells_null(tmp_path: Path) -> None:
    source = _read(tmp_path, "t.csv", '\ufeffid,label,note\n007,a,"two\nlines, and ""quotes"""\n\n8,,x\n')
    assert source.table.to_pylist() == [
        {"id": "007", "label": "a", "note": 'two\nlines, and "quotes"'},
        {"id": "8", "label": None, "note": "x"},
    ]
    assert not source.typed
    assert source.row_of.tolist() == [0, 1]
    assert source.files == ("t.csv",)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiters(tmp_path: Path, delimiter: str) -> None:
    source = _read(tmp_path, "t.csv", f"id{delimiter}label\n1{delimiter}a\n")
    assert source.table.to_pylist() == [{"id": "1", "label": "a"}]


def test_csv_delimiter_is_that_of_the_column_names_below_blank_lines(tmp_path: Path) -> None:
    source = _read(tmp_path, "t.csv", "\n  \nid;label\n1, 2;a\n".replace("  ", ""))
    assert source.table.to_pylist() == [{"id": "1, 2", "label": "a"}]


def test_csv_cell_of_a_megabyte(tmp_path: Path) -> None:
    source = _read(tmp_path, "t.csv", f"id,label\n{'x' * (1 << 20)},a\n")
    assert not source.rejected
    assert len(source.table.column("id")[0].as_py()) == 1 << 20


def test_csv_in_utf16_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"t\.csv: the line of column names .* not UTF-8; save the file as UTF-8"
    ):
        _read(tmp_path, "t.csv", "id,label\n1,a\n".encode("utf-16"))


def test_csv_rows_that_cannot_be_read_cost_themselves_only(tmp_path: Path) -> None:
    content = b'id,label\n1,a\n2\n3,a,b\n\xff4,a\n"5,a\n6,b\n"7"x,b\n8,b\n'
    source = _read(tmp_path, "t.csv", content)
    assert source.table.column("id").to_pylist() == ["1", "6", "8"]
    assert source.row_of.tolist() == [0, 5, 7]
    assert _rejected(source) == [
        (1, "row_unreadable"),
        (2, "row_unreadable"),
        (3, "text_not_utf8"),
        (4, "row_unreadable"),
        (6, "row_unreadable"),
    ]
    messages = [r.message for r in source.rejected]
    assert messages[0] == "expected 2 cells, as many as the header has, found 1"
    assert source.rejected[2].field == "id"
    assert messages[3].startswith("line 6: ")
    assert source.rows == 8


def test_csv_quote_that_is_never_closed(tmp_path: Path) -> None:
    source = _read(tmp_path, "t.csv", 'id,label\n"1,a\n2,b\n3,c\n')
    assert source.table.column("id").to_pylist() == ["2", "3"]
    assert [r.message for r in source.rejected] == ["line 2: a quote is not closed"]


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=20))
def test_any_csv_that_is_written_well_reads_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    lines = ["a,b", *(",".join(map(quoted, row)) for row in rows)]
    source = _read(tmp_path_factory.mktemp("csv"), "t.csv", "\n".join(lines))
    assert [(r["a"] or "", r["b"] or "") for r in source.table.to_pylist()] == rows
    assert not source.rejected


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_every_csv_line_of_any_bytes_is_a_record_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    source = _read(tmp_path_factory.mktemp("csv"), "t.csv", b"a,b\n" + content)
    seen = sorted([*source.row_of.tolist(), *(r.row for r in source.rejected)])
    assert seen == list(range(source.rows))


def test_jsonl_keeps_types_and_rejects_broken_lines(tmp_path: Path) -> None:
    lines = [
        b'{"id": "a", "n": 1, "x": 1, "flag": true, "tags": ["p", "q"]}',
        b"not json",
        b"[1]",
        b'{"id": "\xff"}',
        b'{"id": "\\ud800"}',
        b"",
        b'{"id": "b", "n": null, "x": 2.5, "late": ""}',
    ]
    source = _read(tmp_path, "t.jsonl", b"\n".join(lines))
    first, second = source.table.to_pylist()
    assert first == {"id": "a", "n": 1, "x": 1.0, "flag": True, "tags": '["p", "q"]', "late": None}
    assert second == {"id": "b", "n": None, "x": 2.5, "flag": None, "tags": None, "late": None}
    assert source.row_of.tolist() == [0, 5]
    assert _rejected(source) == [
        (1, "row_unreadable"),
        (2, "row_unreadable"),
        (3, "text_not_utf8"),
        (4, "text_not_utf8"),
    ]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.dictionaries(
                st.sampled_from("ab"),
                st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just([1])),
            ).map(lambda record: json.dumps(record).encode()),
        ),
        min_size=1,
    )
)
def test_every_jsonl_line_of_any_bytes_is_a_record_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    content = b'{"a": null}\n' + b"\n".join(lines)
    source = _read(tmp_path_factory.mktemp("jsonl"), "t.jsonl", content)
    seen = sorted([*source.row_of.tolist(), *(r.row for r in source.rejected)])
    assert seen == list(range(sum(bool(line.strip()) for line in content.split(b"\n"))))
    assert source.table.num_rows == len(source.row_of)


def test_jsonl_of_mixed_types_becomes_text(tmp_path: Path) -> None:
    lines = [{"a": 1, "b": True, "c": 10**30}, {"a": "x", "b": 0, "c": 1}]
    source = _read(tmp_path, "t.jsonl", "\n".join(map(json.dumps, lines)))
    assert source.table.to_pylist() == [
        {"a": "1", "b": "true", "c": str(10**30)},
        {"a": "x", "b": "0", "c": "1"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "t.csv is empty: expected a line of column names"),
        ("t.csv", "\n \n", "t.csv is empty"),
        ("t.jsonl", "", "t.jsonl is empty: expected one JSON object a line"),
        ("t.jsonl", "[{}]", "t.jsonl is a JSON array: expected one JSON object a line"),
        ("t.csv", "a,b,a\n1,2,3\n", "two columns named 'a'"),
        ("t.parquet", "", "t.parquet has 0 bytes and cannot be read as Parquet"),
        ("t.parquet", "PAR1 and then nothing", "t.parquet has 21 bytes and cannot be read"),
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _read(tmp_path, name, content)


def test_parquet_leaves_bytes_in_the_file(tmp_path: Path) -> None:
    payloads = [bytes([i % 256]) * i if i % 3 else None for i in range(300)]
    table = pa.table(
        {
            "id": [str(i) for i in range(300)],
            "image": pa.array(payloads),
            "audio": pa.array([{"bytes": p, "path": p and "x"} for p in payloads]),
            "when": pa.array([[i] for i in range(300)]),
            "kind": pa.array(["a", ""] * 150).dictionary_encode(),
        }
    )
    pq.write_table(table.slice(0, 200), tmp_path / "p0.parquet", row_group_size=70)
    pq.write_table(table.slice(200).drop_columns(["audio"]), tmp_path / "p1.parquet")
    source = read_source(str(tmp_path))
    assert source.table.column_names == ["id", "kind"]
    assert source.table.column("kind").to_pylist() == ["a", None] * 150
    assert sorted(source.byte_columns) == ["audio", "image"]
    assert source.notes == (
        "column 'when' left out: its type is list<element: int64>; store it as numbers, text or bytes",
    )
    assert source.files == ("p0.parquet", "p1.parquet")
    assert (source.file_of[250], source.row_of[250]) == (1, 50)
    with ByteSpool(source, ["image", "audio"]) as spool:
        for row in (299, 0, 1, 250, 3):
            assert spool.get("image", row) == payloads[row]
            assert spool.get("audio", row) == (payloads[row] if row < 200 else None)


def test_parquet_sample_of_bytes_is_of_values_that_are_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(200), "image": [None] * 150 + [b"x"] * 50}), tmp_path / "t.parquet")
    assert b"x" in read_source(str(tmp_path / "t.parquet")).byte_columns["image"].to_pylist()


def test_parquet_of_bytes_alone_has_records(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"] * 5}), tmp_path / "t.parquet")
    assert read_source(str(tmp_path / "t.parquet")).rows == 5


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"x": [b"1"]}, {"x": ["1"]}, "1.parquet has text or numbers in the column 'x', others bytes"),
        ({"x": [1]}, {"x": ["1"]}, "the Parquet files do not fit together"),
    ],
)
def test_parquet_files_that_do_not_fit_together(
    tmp_path: Path, first: dict[str, list[object]], second: dict[str, list[object]], message: str
) -> None:
    for index, columns in enumerate((first, second)):
        pq.write_table(pa.table(columns), tmp_path / f"{index}.parquet")
    with pytest.raises(DataError, match=message):
        read_source(str(tmp_path))


def test_parquet_with_two_columns_of_one_name(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"]], names=["x", "x"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet has two columns named 'x'; rename one"):
        read_source(str(tmp_path / "t.parquet"))


def test_files_of_one_source_may_lack_columns_and_keep_their_own_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,label\n1,a\n2\n")
    (tmp_path / "b.csv").write_text("label,note\nb,x\n")
    source = read_source(str(tmp_path))
    assert source.table.to_pylist() == [
        {"id": "1", "label": "a", "note": None},
        {"id": None, "label": "b", "note": "x"},
    ]
    assert [source.files[f] for f in source.file_of] == ["a.csv", "b.csv"]
    assert [(r.source, r.row) for r in source.rejected] == [("a.csv", 1)]


def test_a_folder_may_have_a_name_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "data[1]").mkdir()
    (tmp_path / "data[1]" / "t.csv").write_text("id,label\n1,a\n")
    assert read_source(str(tmp_path / "data[1]")).files == ("t.csv",)


def test_what_a_path_stands_for(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "README.md", "sub/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("id,label\n1,a\n")
    names = [
        [p.removeprefix(f"{tmp_path}/") for p in find_tables(str(tmp_path / part))]
        for part in ("", "b.csv", "*/*.csv")
    ]
    assert names == [["a.csv", "b.csv"], ["b.csv"], ["sub/c.csv"]]
    assert read_source(str(tmp_path / "*.csv")).files == ("a.csv", "b.csv")


def test_what_a_path_cannot_stand_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere.csv' does not exist"):
        find_tables(str(tmp_path / "nowhere.csv"))
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(UsageError, match="is no table: expected a file name ending in .csv"):
        find_tables(str(tmp_path / "a.xlsx"))
    (tmp_path / "a.csv").touch()
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(UsageError, match=r"several formats \(1 csv, 1 jsonl\); name one"):
        find_tables(str(tmp_path))


def test_a_table_behind_a_uri() -> None:
    with fsspec.open("memory://tables/t.csv", "wb") as handle:
        handle.write(b"id,label\n1,a\n")
    for source in ("memory://tables/t.csv", "memory://tables"):
        assert read_source(source).files == ("t.csv",)
    with fsspec.open("memory://tables/deep/t.csv", "wb") as handle:
        handle.write(b"id,label\n1,a\n")
    assert read_source("memory://tables/*/*.csv").files == ("deep/t.csv",)


def test_a_table_named_relative_to_the_working_folder_or_by_a_file_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text("id,label\n1,a\n")
    monkeypatch.chdir(tmp_path)
    for source in ("t.csv", ".", f"file://{tmp_path}/t.csv"):
        read = read_source(source)
        assert read.files == ("t.csv",)
        assert read.folders == (str(tmp_path),)


def test_numbers_in_text() -> None:
    def numbers(*values: str | None) -> list[object]:
        return list(as_numbers(pa.chunked_array([pa.array(values, pa.string())])).to_pylist())

    assert numbers("1", " -2", None, "NA") == [1, -2, None, None]
    assert numbers("1", "2.5", "1e3", "n/a") == [1.0, 2.5, 1000.0, None]
    assert numbers("01", "2") == ["01", "2"]
    assert numbers("0", "0.5") == [0.0, 0.5]
    assert numbers("1", "x") == ["1", "x"]
    assert numbers(None, "NA") == [None, "NA"]


def test_text_of_numbers() -> None:
    def text(values: list[object]) -> list[str | None]:
        return list(as_text(pa.chunked_array([pa.array(values)])).to_pylist())

    assert text([1.0, None, float("nan"), 3.0]) == ["1", None, None, "3"]
    assert text([1.5, 2.0]) == ["1.5", "2"]
    assert text([True, None]) == ["true", None]
    assert text([1e300, float("inf")]) == ["1e+300", "inf"]
    assert text([" a ", "  "]) == ["a", None]
