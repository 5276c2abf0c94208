"""The protocol without model and Ray: whoever dies where, a finished run has every row once, and verify knows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.quarantine import to_parquet as rejected_to_parquet
from xmodal_dist.errors import SpecDiffersError, UsageError, VerificationError
from xmodal_dist.score import ledger
from xmodal_dist.score.formats import Footer, Identity, ScoreManifest
from xmodal_dist.score.source import Plan, Unit
from xmodal_dist.score.verify import verify_scoring

UNITS = 5
ROWS = 4
SCHEMA = pa.schema([("source", pa.string()), ("row", pa.int64()), ("label", pa.string())])


def _plan(pin: str = "9/1") -> Plan:
    units = (
        Unit(n, f"/in/{n // 2}.parquet", pin, n % 2, n % 2 + 1, n % 2 * ROWS, n % 2 * ROWS + ROWS)
        for n in range(UNITS)
    )
    return Plan(tuple(units), 3, SCHEMA)


def _identity(plan: Plan, top_k: int = 3, bundle: str = "b1") -> Identity:
    return Identity(
        bundle=bundle,
        input=plan.digest,
        files=3,
        units=UNITS,
        rows=plan.rows,
        settings={"top_k": top_k},
        code="1",
    )


class _Scored(NamedTuple):
    """What an attempt at a unit computed; the rows of ``bad`` (within the unit) are rejected."""

    footer: Footer
    table: pa.Table
    rejected: list[Rejected]


def _score(unit: Unit, spec: str, bad: frozenset[int] = frozenset(), attempt: str = "a") -> _Scored:
    rows = [unit.start + i for i in range(unit.rows) if i not in bad]
    table = pa.table([[unit.path] * len(rows), rows, ["cat"] * len(rows)], schema=SCHEMA)
    rejected = [
        Rejected(unit.path, unit.start + i, "", "x", "media_truncated", "ends early") for i in sorted(bad)
    ]
    footer = Footer(
        spec=spec,
        unit=unit.number,
        attempt=attempt,
        source=unit.path,
        start=unit.start,
        stop=unit.stop,
        rows_in=unit.rows,
        rows_ok=len(rows),
        rows_bad=len(bad),
        labels={"cat": len(rows)} if rows else {},
        confidence=(len(rows), 0),
        reasons={"media_truncated": len(bad)} if bad else {},
    )
    return _Scored(footer, table, rejected)


def _finish(output: str, plan: Plan, identity: Identity) -> ScoreManifest:
    for unit in plan.units:
        if unit.number not in ledger.committed_units(output):
            ledger.commit(output, *_score(unit, identity.digest))
    parts = {p.footer.unit: p for p in ledger.read_parts(output, sorted(ledger.committed_units(output)))}
    return ledger.finalise(output, identity, plan, parts, ["cat", "dog"], SCHEMA)


ATTEMPTS = st.lists(
    st.tuples(
        st.integers(0, UNITS - 1),
        st.frozensets(st.integers(0, ROWS - 1)),
        st.sampled_from(["nothing", "half a file", "its quarantine", "everything"]),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(attempts=ATTEMPTS)
def test_whoever_dies_where_every_row_is_there_once(
    attempts: list[tuple[int, frozenset[int], str]],
) -> None:
    """Attempts at units, more than one at some, each dead after having written what the last value says."""
    plan = _plan()
    identity = _identity(plan)
    with tempfile.TemporaryDirectory() as folder:
        assert ledger.open_run(folder, identity, plan)
        first: dict[int, str] = {}
        for place, (number, bad, written) in enumerate(attempts):
            scored = _score(plan.units[number], identity.digest, bad, str(place))
            if written == "half a file":
                torn = Path(folder, ledger.part_path(number) + f".{place}.tmp")
                torn.parent.mkdir(exist_ok=True)
                torn.write_bytes(b"PAR1 torn")
            elif written == "its quarantine" and bad:
                orphan = Path(folder, "quarantine", f"part-{number:05d}-{place}.parquet")
                orphan.parent.mkdir(exist_ok=True)
                orphan.write_bytes(rejected_to_parquet(scored.rejected))
            elif written == "everything":
                part = ledger.commit(folder, *scored)
                assert part.footer.attempt == first.setdefault(number, str(place)), "the first commit stands"
        assert ledger.committed_units(folder) == set(first)
        unfinished = verify_scoring(folder)
        assert unfinished.lost == (UNITS - len(first)) * ROWS and unfinished.duplicated == 0
        assert not ledger.open_run(folder, identity, plan)
        manifest = _finish(folder, plan, identity)
        assert manifest.rows_in == manifest.rows_ok + manifest.rows_bad == UNITS * ROWS
        assert manifest.label_counts == {"cat": manifest.rows_ok, "dog": 0}
        assert verify_scoring(folder) == (0, 0, [])
        assert ledger.read_predictions(folder).num_rows == manifest.rows_ok
        assert _finish(folder, plan, identity) == manifest == ledger.load_manifest(folder)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    plan = _plan()
    identity = _identity(plan)
    ledger.open_run(str(tmp_path), identity, plan)
    ledger.commit(str(tmp_path), *_score(plan.units[1], identity.digest, frozenset({0, 2})))
    _finish(str(tmp_path), plan, identity)
    return tmp_path


def test_verify_counts_what_is_missing(finished: Path) -> None:
    assert verify_scoring(str(finished)) == (0, 0, [])
    (finished / ledger.part_path(3)).unlink()
    found = verify_scoring(str(finished))
    assert (found.lost, found.duplicated, len(found.failed_checks)) == (ROWS, 0, 1)
    assert found.failed_checks[0] == "data/part-00003.parquet is missing: rows 4 to 8 of /in/1.parquet"
    next((finished / "quarantine").iterdir()).unlink()
    found = verify_scoring(str(finished))
    assert found.lost == ROWS + 2 and "2 rejected records" in found.failed_checks[0]


def test_verify_counts_rows_that_are_there_twice(finished: Path) -> None:
    part = finished / ledger.part_path(0)
    table = pq.read_table(part)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), part)
    found = verify_scoring(str(finished))
    assert (found.lost, found.duplicated) == (0, 1)
    assert [f.split("part-00000.parquet ")[1][:20] for f in found.failed_checks] == [
        "is damaged: its SHA-",
        "has 5 rows, its foot",
    ]


@pytest.mark.parametrize("at", [4, 60, -30])
def test_verify_notices_a_flipped_bit_anywhere(finished: Path, at: int) -> None:
    for path in [finished / ledger.part_path(2), next((finished / "quarantine").iterdir())]:
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[at] ^= 1
        path.write_bytes(bytes(damaged))
        assert any(path.name in check for check in verify_scoring(str(finished)).failed_checks)
        path.write_bytes(sound)
    assert verify_scoring(str(finished)) == (0, 0, [])


def test_verify_notices_parts_that_are_not_this_run_s(finished: Path) -> None:
    plan = _plan()
    for stranger, number in [(_score(plan.units[0], "another"), 0), (_score(plan.units[1], "x"), 7)]:
        path = finished / ledger.part_path(number)
        path.unlink(missing_ok=True)
        ledger.commit(str(finished), stranger.footer.model_copy(update={"unit": number}), stranger.table, [])
    failed = verify_scoring(str(finished)).failed_checks
    assert any("part-00000.parquet belongs to another run" in check for check in failed)
    assert any("part-00007.parquet belongs to no unit" in check for check in failed)


def test_a_run_is_not_finished_with_what_does_not_add_up(tmp_path: Path) -> None:
    plan = _plan()
    identity = _identity(plan)
    output = str(tmp_path)
    ledger.open_run(output, identity, plan)
    parts = {u.number: ledger.commit(output, *_score(u, identity.digest)) for u in plan.units}
    with pytest.raises(VerificationError, match=r"part-00002\.parquet: is missing"):
        ledger.finalise(output, identity, plan, {n: p for n, p in parts.items() if n != 2}, ["cat"], SCHEMA)
    other = identity.model_copy(update={"bundle": "b2"})
    with pytest.raises(VerificationError, match=r"part-00000\.parquet: belongs to another run"):
        ledger.finalise(output, other, plan, parts, ["cat"], SCHEMA)
    swapped = {**parts, 1: parts[3]}
    with pytest.raises(VerificationError, match="not of the planned ones"):
        ledger.finalise(output, identity, plan, swapped, ["cat"], SCHEMA)
    assert ledger.load_manifest(output) is None
    with pytest.raises(UsageError, match="not finished; give the same command again"):
        ledger.read_predictions(output)


def test_another_run_on_the_same_output_is_refused_and_told_what_differs(finished: Path) -> None:
    plan = _plan()
    with pytest.raises(SpecDiffersError) as caught:
        ledger.open_run(str(finished), _identity(plan, top_k=5, bundle="b2"), plan)
    assert "bundle: the run has 'b1', this command 'b2'" in str(caught.value)
    assert "top_k: the run has 3, this command 5" in str(caught.value)
    replaced = _plan(pin="10/2")
    with pytest.raises(SpecDiffersError, match=r"input /in/0\.parquet: changed since"):
        ledger.open_run(str(finished), _identity(replaced), replaced)


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
    assert verify_scoring(str(tmp_path)) == (0, 0, [])
