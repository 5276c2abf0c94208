"""The plan covers every row once and fails closed; a unit's rows come back in order, from the file that was planned."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.score.plan import Plan
from xmodal_dist.score.source import Need, is_of_same_files, make_plan, read_unit

NEEDS = [Need("value", "the test", "name another")]
NAMES = [*NEEDS, Need("id", "the output's id", "name the ids", "names", optional=True)]


def _write(path: Path, row_groups: list[int], first: int = 0) -> int:
    """A file whose values count up from ``first``, in row groups of the given sizes; the next value."""
    schema = pa.schema([("value", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for rows in row_groups:
            writer.write_table(pa.table({"value": range(first, first + rows)}, schema=schema))
            first += rows
    return first


def _plan(folder: Path, unit_rows: int = 10, unit_bytes: int = 1 << 30, needs: list[Need] = NEEDS) -> Plan:
    return make_plan([str(folder)], None, needs, unit_rows, unit_bytes)


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6), min_size=1, max_size=4),
    unit_rows=st.integers(1, 30),
    unit_bytes=st.sampled_from([1, 200, 1 << 30]),
    batch_rows=st.integers(1, 20),
)
def test_units_hold_every_row_once_in_order(
    files: list[list[int]], unit_rows: int, unit_bytes: int, batch_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        total = 0
        for number, groups in enumerate(files):
            total = _write(Path(folder) / f"{number}.parquet", groups, total)
        if total == 0:
            with pytest.raises(DataError, match="no rows"):
                _plan(Path(folder), unit_rows, unit_bytes)
            return
        plan = _plan(Path(folder), unit_rows, unit_bytes)
        assert (plan.num_rows, len(plan.paths)) == (total, len(files))
        units = list(plan)
        assert [unit.number for unit in units] == list(range(len(plan)))
        batches = [table for unit in units for table in read_unit(unit, ["value"], batch_rows)]
        assert all(0 < table.num_rows <= batch_rows for table in batches)
        assert pa.concat_tables(batches).column("value").to_pylist() == list(range(total))
        for unit, following in zip(units, units[1:], strict=False):
            full = unit.rows >= unit_rows or unit_bytes < 1000
            assert unit.path != following.path or (full and unit.stop == following.start)
        again = Plan.from_parquet(plan.to_parquet())
        assert list(again) == units and again.digest == plan.digest
        assert is_of_same_files(again, [folder], None)


def test_the_digest_names_the_content(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", [5, 5])
    before = _plan(tmp_path)
    assert _plan(tmp_path).digest == before.digest
    assert _plan(tmp_path, unit_rows=5).digest != before.digest
    _write(tmp_path / "a.parquet", [5, 6])
    assert _plan(tmp_path).digest != before.digest
    assert not is_of_same_files(before, [str(tmp_path)], None)


def test_a_file_replaced_after_planning_is_noticed(tmp_path: Path) -> None:
    _write(tmp_path / "a.parquet", [10])
    unit = _plan(tmp_path).unit(0)
    _write(tmp_path / "a.parquet", [11])
    with pytest.raises(DataError, match=r"a\.parquet has changed since the run was planned"):
        list(read_unit(unit, ["value"], 4))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(DataError, match=r"a\.parquet is no longer there"):
        list(read_unit(unit, ["value"], 4))


def test_a_damaged_page_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"value": range(1000)}), path, compression="none", write_page_checksum=True)
    payload = bytearray(path.read_bytes())
    payload[500] ^= 255
    path.write_bytes(bytes(payload))
    with pytest.raises(DataError, match=r"a\.parquet: rows 0 to 1000 cannot be read"):
        list(read_unit(_plan(tmp_path).unit(0), ["value"], 64))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.write_bytes(b""), r"b\.parquet is empty \(0 bytes\)"),
        (
            lambda p: p.write_bytes(p.read_bytes()[:-20]),
            r"b\.parquet \(\d+ bytes\) cannot be read as Parquet",
        ),
        (lambda p: p.write_text("id,label\n1,cat\n"), r"b\.parquet \(\d+ bytes\) cannot be read as Parquet"),
        (
            lambda p: pq.write_table(pa.table({"value": ["x"]}), p),
            r"'value' is string, but int64 in .*a\.parquet",
        ),
        (
            lambda p: pq.write_table(pa.table({"value": [1], "id": [1]}), p),
            r"'id' is int64, but absent in .*a\.pa",
        ),
    ],
    ids=["empty", "truncated", "not Parquet", "another type", "ids in one file only"],
)
def test_a_file_that_cannot_be_scored_whole_stops_the_run(
    tmp_path: Path, spoil: object, message: str
) -> None:
    for name in ("a", "b"):
        _write(tmp_path / f"{name}.parquet", [3])
    spoil(tmp_path / "b.parquet")  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        _plan(tmp_path, needs=NAMES)


def test_messages_say_what_to_change(tmp_path: Path) -> None:
    pq.write_table(pa.table({"valeu": [1], "other": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(
        UsageError, match=r"no column 'value', which the test needs; nearest: 'valeu'.*'other'.*name an"
    ):
        _plan(tmp_path)
    with pytest.raises(UsageError, match=r"'other' is binary, but the id needs text or numbers; choose"):
        _plan(tmp_path, needs=[Need("other", "the id", "choose", "names")])
    with pytest.raises(UsageError, match=r"'valeu' is int64, but field 'x' needs bytes, paths or URIs"):
        _plan(tmp_path, needs=[Need("valeu", "field 'x'", "choose", "media")])
    needs = [Need("valeu", "the test", "")]
    file = str(tmp_path / "a.parquet")
    for inputs, split, message in [
        ([str(tmp_path / "nothing")], None, "nothing' does not exist"),
        ([str(tmp_path / "*.csv")], None, "no file matches"),
        ([file, str(tmp_path / "*.parquet")], None, "is named twice"),
        ([file], "test", "is not a packed dataset, so it has no split 'test'"),
    ]:
        with pytest.raises(UsageError, match=message):
            make_plan(inputs, split, needs, 10, 10)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no file \*\.parquet below"):
        _plan(tmp_path / "empty")


def test_globs_folders_and_splits_of_datasets_are_inputs(tmp_path: Path, tiny_dataset: str) -> None:
    for name in ("a", "b", "_hidden"):
        _write(tmp_path / f"{name}.parquet", [3])
    folder = _plan(tmp_path)
    assert len(folder.paths) == 2
    assert make_plan([str(tmp_path / "[ab].parquet")], None, NEEDS, 10, 1 << 30).digest == folder.digest
    needs = [Need("label", "the test", "")]
    everything = make_plan([tiny_dataset], None, needs, 10, 1 << 30)
    test = make_plan([tiny_dataset], "test", needs, 10, 1 << 30)
    assert (everything.num_rows, test.num_rows) == (150, 15)
    assert set(test.paths) < set(everything.paths)
