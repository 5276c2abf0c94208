"""What a finished run measures, and the command that plans from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.ours.sleeping_worker import SCHEMA, SleepingJob, SleepingWorker
from xmodal_dist import api
from xmodal_dist.cli import main
from xmodal_dist.errors import UsageError
from xmodal_dist.plan.calibrate import measure
from xmodal_dist.score import ledger
from xmodal_dist.score.formats import Identity, Receipt
from xmodal_dist.score.plan import Plan
from xmodal_dist.score.pool import Pool
from xmodal_dist.score.tally import Tally

UNITS, ROWS = 8, 50


def _plan() -> Plan:
    places = np.stack([np.arange(UNITS), np.arange(1, UNITS + 1)], axis=1)
    return Plan(
        ("/in/a.parquet",), ("120000/tag",), np.zeros(UNITS, np.int32), places.astype(np.int32), places * ROWS
    )


def _events(folder: Path, name: str, ticks: list[tuple[float, str, dict[str, float]]]) -> None:
    folder.mkdir(exist_ok=True)
    began = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
    lines = [
        json.dumps(
            {"ts": (began + timedelta(seconds=s)).isoformat(), "event": event, "driver": name, **fields}
        )
        for s, event, fields in ticks
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of 400 records: two workers, ten seconds of start-up, then 4 records a second each."""
    output, plan = tmp_path_factory.mktemp("plan") / "scored", _plan()
    identity = Identity(
        bundle="none", input=plan.digest, files=1, units=UNITS, rows=plan.num_rows, settings={}, code="test"
    )
    ledger.open_run(str(output), identity, plan)
    tally = Tally(plan, identity.digest)
    worker = SleepingWorker(SleepingJob(str(output), identity.digest, 0.0), Pool(workers=1))
    for told in worker(pa.Table.from_pylist([unit._asdict() for unit in plan])):
        tally.add(Receipt.model_validate_json(told["receipt"][0].as_py()).part)
    ledger.finalise(str(output), identity, tally, ["cat"], SCHEMA)
    ticks = [(s, "progress", {"rows_done": max(0, 8 * (s - 10))}) for s in range(5, 60, 5)]
    end = (60.5, "finished", {"rows_in": 400})
    _events(output / "_events", "whole", [(0, "run_started", {"workers": 2, "rows": 400}), *ticks, end])
    _events(output / "_events", "late", [(0, "resumed", {"workers": 9, "rows_done": 390}), end])
    yield output


def test_a_run_measures_its_steady_part(scored: Path) -> None:
    found = measure(str(scored))
    assert (found.seconds_per_record, found.start_s) == pytest.approx((0.25, 10.0))
    assert (found.unit_rows, found.input_bytes_per_record) == (ROWS, 300.0)
    assert found.output_bytes_per_record > 1


def test_a_short_run_measures_what_it_can(scored: Path) -> None:
    folder = scored / "_events"
    kept = {path: path.read_text() for path in folder.iterdir()}
    for path in kept:
        path.unlink()
    _events(folder, "short", [(0, "run_started", {"workers": 1}), (5, "progress", {"rows_done": 0}),
                              (9, "finished", {"rows_in": 400})])  # fmt: skip
    found = measure(str(scored))
    assert (found.seconds_per_record, found.start_s) == pytest.approx((0.01, 5.0))
    (folder / "short.jsonl").unlink()
    with pytest.raises(UsageError, match="tells of no command that scored"):
        measure(str(scored))
    for path, text in kept.items():
        path.write_text(text)


def test_the_command_plans_from_a_run(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "plan",
        "--from",
        str(scored),
        "--records",
        "1e6",
        "--workers",
        "1,10",
        "--price-per-worker-hour",
        "0.5",
    ]
    with pytest.raises(SystemExit, match="0"):
        main([*given, "--worker-mtbf-hours", "5", "--set", "unit_rows=400", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["assumptions"]["seconds_per_record"] == pytest.approx(0.25)
    one, ten = found["forecasts"]
    assert (one["units"], one["workers"], ten["workers"]) == (2500, 1, 10)
    assert one["wall_s"] == pytest.approx(250_000, rel=0.02)
    assert ten["wall_s"] == pytest.approx(25_000, rel=0.03)
    assert ten["cost"] == pytest.approx(0.5 * 10 * ten["wall_s"] / 3600)
    with pytest.raises(SystemExit, match="0"):
        main(given)
    text = capsys.readouterr().out
    assert "bottleneck" in text and "1,000,000" not in text and "more workers help" in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give --from OUTPUT"),
        ({"seconds_per_record": -1.0}, "seconds_per_record"),
        ({"seconds_per_record": float("nan")}, "seconds_per_record"),
        ({"seconds_per_record": 0.1, "set": ["unit_rws=3"]}, "did you mean 'unit_rows'"),
        ({"seconds_per_record": 0.1, "set": ["unit_rows"]}, "expected NAME=VALUE"),
        ({"seconds_per_record": 0.1, "set": ["unit_rows=["]}, "not valid YAML"),
        ({"seconds_per_record": 100.0, "worker_mtbf_hours": 1.0}, "hardly a unit would end"),
    ],
)
def test_nonsense_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        api.plan(1000, [1], **given)  # type: ignore[arg-type]


def test_numbers_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--records", "1.5", "--seconds-per-record", "1"])
    assert ended.value.code == 2 and "expected a whole number" in capsys.readouterr().err
