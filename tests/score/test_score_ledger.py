"""The protocol without model and Ray: whoever dies where, a finished run has every row once, and verify knows."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.quarantine import to_parquet as rejected_to_parquet
from xmodal_dist.errors import SpecDiffersError, UsageError, VerificationError
from xmodal_dist.score import ledger
from xmodal_dist.score.collect import collect_garbage
from xmodal_dist.score.commit import commit, part_path
from xmodal_dist.score.formats import CONFIDENCE_BINS, Footer, Identity, Part, ScoreManifest
from xmodal_dist.score.ids import IdHash
from xmodal_dist.score.plan import Plan, Unit
from xmodal_dist.score.tally import Tally
from xmodal_dist.score.verify import verify_scoring

UNITS = 5
ROWS = 4
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Every file is forced to the disk; thousands of them take minutes there."""
SCHEMA = pa.schema(
    [("source", pa.string()), ("row", pa.int64()), ("label", pa.string()), ("kind", pa.string())]
)


def _plan(pin: str = "9/1") -> Plan:
    numbers = np.arange(UNITS)
    groups = np.stack([numbers % 2, numbers % 2 + 1], axis=1).astype(np.int32)
    return Plan(
        paths=tuple(f"/in/{n}.parquet" for n in range(3)),
        pins=(pin,) * 3,
        file=(numbers // 2).astype(np.int32),
        groups=groups,
        rows=groups.astype(np.int64) * ROWS,
    )


def _identity(plan: Plan, top_k: int = 3, bundle: str = "b1", partition_by: str | None = None) -> Identity:
    return Identity(
        bundle=bundle,
        input=plan.digest,
        files=3,
        units=UNITS,
        rows=plan.num_rows,
        settings={"top_k": top_k, "partition_by": partition_by, "id_column": None},
        code="1",
    )


class _Scored(NamedTuple):
    """What an attempt at a unit computed."""

    footer: Footer
    table: pa.Table
    rejected: list[Rejected]


def _score(
    unit: Unit,
    spec: str,
    bad: frozenset[int] = frozenset(),
    attempt: str = "a",
    generation: int = 1,
    among: frozenset[int] = frozenset(range(ROWS)),
) -> _Scored:
    """Score the rows ``among`` (within the unit), of which those in ``bad`` are rejected."""
    names = Path(unit.path).name
    wanted = sorted(among)
    rows = [unit.start + i for i in wanted if i not in bad]
    columns = [[unit.path] * len(rows), rows, ["cat"] * len(rows), ["odd" if r % 2 else None for r in rows]]
    rejected = [
        Rejected(unit.path, unit.start + i, f"{names}#{unit.start + i}", "x", "media_truncated", "ends early")
        for i in sorted(bad & among)
    ]
    ids = IdHash()
    ids.add(f"{names}#{unit.start + i}" for i in wanted)
    footer = Footer(
        spec=spec,
        unit=unit.number,
        generation=generation,
        attempt=attempt,
        source=unit.path,
        start=unit.start,
        stop=unit.stop,
        rows_in=len(wanted),
        rows_ok=len(rows),
        rows_bad=len(rejected),
        ids=ids.hexdigest(),
        labels={"cat": len(rows)} if rows else {},
        confidence=(len(rows), *[0] * (CONFIDENCE_BINS - 1)),
        present={"x": len(rows)} if rows else {},
        reasons={"media_truncated": len(rejected)} if rejected else {},
    )
    return _Scored(footer, pa.table(columns, schema=SCHEMA), rejected)


def _finish(output: str, plan: Plan, identity: Identity) -> ScoreManifest:
    """What a driver does that goes on with the run: what is missing, then the end."""
    by = identity.settings["partition_by"]
    tally = Tally(plan, identity.digest)
    for number in tally.missing().tolist():
        if number not in ledger.committed_units(output, 1, by is not None):
            commit(output, *_score(plan.unit(number), identity.digest), by)
    committed = ledger.committed_units(output, 1, by is not None).tolist()
    for part in ledger.read_parts(output, committed, 1, by is not None):
        tally.add(part)
    return ledger.finalise(output, identity, tally, ["cat", "dog"], SCHEMA)


ATTEMPTS = st.lists(
    st.tuples(
        st.integers(0, UNITS - 1),
        st.frozensets(st.integers(0, ROWS - 1)),
        st.sampled_from(["nothing", "half a file", "its quarantine", "its files", "everything"]),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(attempts=ATTEMPTS, partition_by=st.sampled_from([None, "kind"]))
def test_whoever_dies_where_every_row_is_there_once(
    attempts: list[tuple[int, frozenset[int], str]], partition_by: str | None
) -> None:
    """Attempts at units, more than one at some, each dead after having written what the last value says."""
    plan = _plan()
    identity = _identity(plan, partition_by=partition_by)
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        assert ledger.open_run(folder, identity, plan)
        first: dict[int, str] = {}
        for place, (number, bad, written) in enumerate(attempts):
            scored = _score(plan.unit(number), identity.digest, bad, str(place))
            record = Path(folder, part_path(number, 1, partition_by is not None))
            if written == "half a file":
                record.parent.mkdir(exist_ok=True)
                record.with_name(f"{record.name}.{place}.tmp").write_bytes(b"PAR1 torn")
            elif written == "its quarantine" and bad:
                orphan = Path(folder, "quarantine", f"part-{number:05d}-{place}.parquet")
                orphan.parent.mkdir(exist_ok=True)
                orphan.write_bytes(rejected_to_parquet(scored.rejected))
            elif written == "its files" and partition_by is not None:
                part, won = commit(folder, *scored, partition_by)
                if won:  # died before the commit itself
                    Path(folder, part.path).unlink()
            elif written == "everything":
                part, won = commit(folder, *scored, partition_by)
                assert won == (number not in first)
                assert part.footer.attempt == first.setdefault(number, str(place)), "the first commit stands"
        assert set(ledger.committed_units(folder, 1, partition_by is not None)) == set(first)
        unfinished = verify_scoring(folder)
        assert (unfinished.lost, unfinished.duplicated) == ((UNITS - len(first)) * ROWS, 0)
        assert not ledger.open_run(folder, identity, plan)
        manifest = _finish(folder, plan, identity)
        assert manifest.rows_in == manifest.rows_ok + manifest.rows_bad == UNITS * ROWS
        assert manifest.label_counts == {"cat": manifest.rows_ok, "dog": 0}
        collect_garbage(folder)
        assert verify_scoring(folder) == (0, 0, [])
        table = ledger.read_predictions(folder)
        assert (table.num_rows, table.column_names) == (manifest.rows_ok, SCHEMA.names)
        assert _finish(folder, plan, identity) == manifest == ledger.load_manifest(folder)
        named = set(ledger.load_files(folder, manifest)["path"].to_pylist())
        there = {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}
        assert there - named == {ledger.RUN_NAME, manifest.files.path, "_manifest.json"} | {
            p for p in there if p.startswith("_plan-")
        }


@settings(max_examples=80, deadline=None)
@given(
    bad=st.lists(st.frozensets(st.integers(0, ROWS - 1)), min_size=UNITS, max_size=UNITS),
    mended=st.lists(st.frozensets(st.integers(0, ROWS - 1)), min_size=UNITS, max_size=UNITS),
    partition_by=st.sampled_from([None, "kind"]),
)
def test_a_retry_adds_what_was_mended_and_keeps_every_row_once(
    bad: list[frozenset[int]], mended: list[frozenset[int]], partition_by: str | None
) -> None:
    plan = _plan()
    identity = _identity(plan, partition_by=partition_by)
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        ledger.open_run(folder, identity, plan)
        for unit in plan:
            commit(folder, *_score(unit, identity.digest, bad[unit.number]), partition_by)
        before = _finish(folder, plan, identity)
        assert before.rows_bad == sum(map(len, bad))
        tally = Tally(plan, identity.digest, 2, np.array([len(b) for b in bad]))
        for unit in plan:
            if bad[unit.number]:
                left = bad[unit.number] - mended[unit.number]
                scored = _score(unit, identity.digest, left, "r", 2, bad[unit.number])
                tally.add(commit(folder, *scored, partition_by)[0])
        after = ledger.finalise(folder, identity, tally, ["cat", "dog"], SCHEMA, before)
        assert after.generation == 2 and after == ledger.load_manifest(folder)
        assert after.rows_bad == sum(len(b - m) for b, m in zip(bad, mended, strict=True))
        assert after.rows_in == after.rows_ok + after.rows_bad == UNITS * ROWS
        collect_garbage(folder)
        assert verify_scoring(folder) == (0, 0, [])
        assert ledger.read_predictions(folder).num_rows == after.rows_ok


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    plan = _plan()
    identity = _identity(plan)
    ledger.open_run(str(tmp_path), identity, plan)
    commit(str(tmp_path), *_score(plan.unit(1), identity.digest, frozenset({0, 2})))
    _finish(str(tmp_path), plan, identity)
    return tmp_path


def test_verify_counts_what_is_missing(finished: Path) -> None:
    assert verify_scoring(str(finished)) == (0, 0, [])
    (finished / part_path(3)).unlink()
    found = verify_scoring(str(finished))
    assert (found.lost, found.duplicated) == (ROWS, 0)
    assert found.failed_checks[0] == "data/part-00003.parquet is missing: 4 rows"
    next((finished / "quarantine").iterdir()).unlink()
    found = verify_scoring(str(finished))
    assert found.lost == ROWS + 2 and any("quarantine/part-00001" in check for check in found.failed_checks)


def test_verify_counts_rows_that_are_there_twice_and_names_them(finished: Path) -> None:
    part = finished / part_path(0)
    table = pq.read_table(part)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), part)
    found = verify_scoring(str(finished))
    assert (found.lost, found.duplicated) == (0, 1)
    assert any("0 lost, 1 too many, among them '0.parquet#0'" in check for check in found.failed_checks)
    swapped = pa.concat_tables([table.slice(1), table.slice(1, 1)])
    pq.write_table(swapped, part)
    found = verify_scoring(str(finished))
    assert (found.lost, found.duplicated) == (1, 1), "the count is right, the records are not"


@pytest.mark.parametrize("at", [4, 60, -30])
def test_verify_notices_a_flipped_bit_anywhere(finished: Path, at: int) -> None:
    manifest = ledger.load_manifest(str(finished))
    assert manifest is not None
    for path in [finished / part_path(2), next((finished / "quarantine").iterdir())]:
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[at] ^= 1
        path.write_bytes(bytes(damaged))
        assert any(path.name in check for check in verify_scoring(str(finished)).failed_checks)
        path.write_bytes(sound)
    assert verify_scoring(str(finished)) == (0, 0, [])
    table = finished / manifest.files.path
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(VerificationError, match=r"_files-.* is damaged"):
        verify_scoring(str(finished))


def test_verify_notices_files_that_are_not_this_run_s(finished: Path) -> None:
    plan = _plan()
    for stranger, number in [(_score(plan.unit(0), "another"), 0), (_score(plan.unit(1), "x"), 7)]:
        (finished / part_path(number)).unlink(missing_ok=True)
        commit(str(finished), stranger.footer.model_copy(update={"unit": number}), stranger.table, [])
    failed = verify_scoring(str(finished)).failed_checks
    assert any("part-00000.parquet belongs to another run" in check for check in failed)
    assert any("part-00007.parquet does not belong to the run: `xmodal gc" in check for check in failed)
    assert collect_garbage(str(finished)).files == 1
    assert not any("part-00007" in check for check in verify_scoring(str(finished)).failed_checks)


def test_a_run_is_not_finished_with_what_does_not_add_up(tmp_path: Path) -> None:
    plan = _plan()
    identity = _identity(plan)
    output = str(tmp_path)
    ledger.open_run(output, identity, plan)
    parts: list[Part] = [commit(output, *_score(unit, identity.digest))[0] for unit in plan]
    tally = Tally(plan, identity.digest)
    for part in (parts[0], parts[0], parts[1], *parts[3:]):
        tally.add(part)
    assert tally.rows_in == 4 * ROWS, "a part counts once"
    with pytest.raises(VerificationError, match=r"part-00002\.parquet is missing \(rows 0 to 4 of"):
        ledger.finalise(output, identity, tally, ["cat"], SCHEMA)
    with pytest.raises(VerificationError, match=r"part-00000\.parquet belongs to another run"):
        Tally(plan, "another").add(parts[0])
    moved = parts[3].footer.model_copy(update={"unit": 2})
    with pytest.raises(VerificationError, match="not of the planned ones"):
        tally.add(parts[2].model_copy(update={"footer": moved}))
    assert ledger.load_manifest(output) is None
    with pytest.raises(UsageError, match="not finished; give the same command again"):
        ledger.read_predictions(output)
    with pytest.raises(UsageError, match="only a finished run can be cleaned"):
        collect_garbage(output)


def test_receipts_come_back_and_attempts_that_end_leave_no_mark(tmp_path: Path) -> None:
    output, plan = str(tmp_path), _plan()
    parts = [commit(output, *_score(unit, "s"))[0] for unit in plan]
    ledger.write_receipts(output, "d1", 0, parts[:2])
    ledger.write_receipts(output, "d2", 0, parts[1:3])
    assert [part.footer.unit for part in ledger.read_receipts(output)] == [1, 2, 0, 1]
    assert [ledger.begin_attempt(output, 3, name) for name in ("x", "y", "z")] == [0, 1, 2]
    ledger.end_attempt(output, 3, "y")
    assert ledger.begin_attempt(output, 3, "w") == 2
    assert ledger.begin_attempt(output, 4, "x") == 0


def test_partitions_are_folders_that_other_readers_understand(tmp_path: Path) -> None:
    plan = _plan()
    identity = _identity(plan, partition_by="kind")
    output = str(tmp_path / "out")
    ledger.open_run(output, identity, plan)
    _finish(output, plan, identity)
    folders = sorted(p.name for p in (tmp_path / "out" / "data").iterdir())
    assert folders == ["kind=__HIVE_DEFAULT_PARTITION__", "kind=odd"]
    whole = pq.read_table(tmp_path / "out" / "data")
    assert whole.num_rows == UNITS * ROWS
    assert pc.sum(pc.equal(whole["kind"].cast(pa.string()), "odd")).as_py() == UNITS * ROWS // 2
    with pytest.raises(UsageError, match="1001 values in one unit"):
        values = [str(i) for i in range(1001)]
        table = pa.table([["a"] * 1001, range(1001), ["cat"] * 1001, values], schema=SCHEMA)
        footer = _score(plan.unit(0), "s").footer.model_copy(update={"rows_in": 1001, "rows_ok": 1001})
        commit(output, footer, table, [], "kind")


def test_another_run_on_the_same_output_is_refused_and_told_what_differs(finished: Path) -> None:
    plan = _plan()
    with pytest.raises(SpecDiffersError) as caught:
        ledger.open_run(str(finished), _identity(plan, top_k=5, bundle="b2"), plan)
    assert "bundle: the run has 'b1', this command 'b2'" in str(caught.value)
    assert "top_k: the run has 3, this command 5" in str(caught.value)
    replaced = _plan(pin="10/2")
    with pytest.raises(SpecDiffersError, match=r"input /in/0\.parquet: changed since"):
        ledger.open_run(str(finished), _identity(replaced), replaced)
    moved = _identity(plan).model_copy(update={"bundle_path": "/elsewhere"})
    assert not ledger.open_run(str(finished), moved, plan)


def test_an_output_with_other_files_is_left_alone(tmp_path: Path) -> None:
    plan = _plan()
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=r"already holds something else \(thesis\.tex\)"):
        ledger.open_run(str(tmp_path), _identity(plan), plan)
    with pytest.raises(UsageError, match="is a file; name a folder"):
        ledger.open_run(str(tmp_path / "thesis.tex"), _identity(plan), plan)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="is not the output of a scoring run"):
        verify_scoring(str(tmp_path))


def test_a_run_that_died_before_its_first_file_was_complete_is_taken_up(tmp_path: Path) -> None:
    plan = _plan()
    identity = _identity(plan)
    (tmp_path / f"_plan-{plan.digest[:16]}.parquet.0.tmp").write_bytes(b"torn")
    (tmp_path / f"{ledger.RUN_NAME}.0.tmp").write_bytes(b"torn")
    assert ledger.open_run(str(tmp_path), identity, plan)
    _finish(str(tmp_path), plan, identity)
    assert json.loads((tmp_path / ledger.RUN_NAME).read_text())["version"] == 2
    assert verify_scoring(str(tmp_path)) == (0, 0, [])
