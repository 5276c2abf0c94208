"""Scoring with a real bundle: what the output says of each record, and on Ray, what a kill, a rerun and a limit do."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.score.bundles import save_tiny_bundle, train_records
from tests.score.runs import score_here
from xmodal_dist.errors import BudgetExceededError, CheckpointError, DataError, SpecDiffersError, UsageError
from xmodal_dist.score import ledger
from xmodal_dist.score.job import prepare, score
from xmodal_dist.score.pool import Pool
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.verify import verify_scoring
from xmodal_dist.score.worker import ScoreWorker, receipt_of

FIELDS = ["picture", "caption", "weather"]


@pytest.fixture(scope="module")
def bundle(tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_bundle(tiny_dataset, tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def records(tiny_dataset: str) -> pa.Table:
    return train_records(tiny_dataset)


def _with(table: pa.Table, column: str, values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    place = table.column_names.index(column)
    return table.set_column(place, column, pa.array(values, kind or table.schema.field(column).type))


def _quarantine(output: Path) -> list[dict[str, Any]]:
    return [
        row for p in sorted((output / "quarantine").glob("*.parquet")) for row in pq.read_table(p).to_pylist()
    ]


# --- what the output says --------------------------------------------------------------------------------------------


def test_each_record_has_its_prediction_in_input_order(
    bundle: str, records: pa.Table, tmp_path: Path
) -> None:
    pq.write_table(records, tmp_path / "in.parquet", row_group_size=30)
    manifest = score_here(
        bundle, [str(tmp_path / "in.parquet")], tmp_path / "out", unit_rows=50, batch_rows=16
    )
    table = ledger.read_predictions(str(tmp_path / "out"))
    assert [str(f.type) for f in table.schema] == [c.type for c in manifest.columns]
    assert table.column_names == ["id", "label", "probability", "top_k", "modalities"]
    assert ledger.load_files(str(tmp_path / "out"), manifest)["rows"].to_pylist() == [60, 60]
    assert table.column("id").to_pylist() == records.column("id").to_pylist()
    for row, record in zip(table.to_pylist(), records.to_pylist(), strict=True):
        assert {pair["label"] for pair in row["top_k"]} == {"blue", "green", "red"}
        probabilities = [pair["probability"] for pair in row["top_k"]]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1)
        assert (row["label"], row["probability"]) == (row["top_k"][0]["label"], probabilities[0])
        assert ("picture" in row["modalities"]) == (record["picture"] is not None)
        assert ("caption" in row["modalities"]) == (record["caption"] is not None)
    labels = table.column("label").to_pylist()
    assert manifest.label_counts == {name: labels.count(name) for name in ("blue", "green", "red")}
    assert sum(manifest.confidence_counts) == manifest.rows_ok == 120


def test_probabilities_do_not_depend_on_units_and_batches(
    bundle: str, records: pa.Table, tmp_path: Path
) -> None:
    pq.write_table(records, tmp_path / "in.parquet", row_group_size=7)
    found = []
    for name, sizes in {"a": (10, 3), "b": (1000, 256)}.items():
        settings = {"unit_rows": sizes[0], "batch_rows": sizes[1], "probabilities": True}
        score_here(bundle, [str(tmp_path / "in.parquet")], tmp_path / name, **settings)
        column = ledger.read_predictions(str(tmp_path / name)).column("probabilities")
        assert column.type == pa.list_(pa.float32(), 3)
        found.append(np.array(column.to_pylist()))
    assert np.allclose(found[0], found[1], atol=1e-6)


def test_evaluation_adds_truth_and_every_subset(bundle: str, records: pa.Table, tmp_path: Path) -> None:
    labels = [None, "violet", *records.column("label").to_pylist()[2:]]
    pq.write_table(_with(records, "label", labels).drop_columns(["id"]), tmp_path / "in.parquet")
    score_here(bundle, [str(tmp_path / "in.parquet")], tmp_path / "out", evaluation=True)
    table = ledger.read_predictions(str(tmp_path / "out"))
    subsets = [name.removeprefix("subset:") for name in table.column_names if name.startswith("subset:")]
    assert len(subsets) == 8 and subsets[0] == "(none)" and subsets[1:4] == FIELDS
    assert table.column("truth").to_pylist() == labels[1:], (
        "a label that training never saw is for evaluation to judge"
    )
    assert table.column("id").to_pylist() == [f"in.parquet#{row}" for row in range(1, 120)]
    assert table.column("subset:picture+caption+weather").equals(table.column("probabilities"))
    alone = np.array(table.column("subset:caption").to_pylist())
    assert np.allclose(alone.sum(axis=1), 1, atol=1e-5)
    without = np.array(["caption" not in names for names in table.column("modalities").to_pylist()])
    assert without.any() and np.ptp(alone[without], axis=0).max() < 1e-6, (
        "one guess for all that lack the field"
    )
    assert [(r["row"], r["field"], r["reason"]) for r in _quarantine(tmp_path / "out")] == [
        (0, "label", "label_missing")
    ]


def test_bad_records_are_quarantined_and_the_others_scored(
    bundle: str, records: pa.Table, tmp_path: Path
) -> None:
    pictures = records.column("picture").to_pylist()
    whole = next(i for i, p in enumerate(pictures) if p is not None and i > 40)
    pictures[whole] = pictures[whole][:-30]
    pictures[50] = b""
    ids = records.column("id").to_pylist()
    ids[3] = None
    broken = _with(_with(records, "picture", pictures), "id", ids)
    pq.write_table(broken, tmp_path / "in.parquet", row_group_size=20)
    manifest = score_here(
        bundle, [str(tmp_path / "in.parquet")], tmp_path / "out", unit_rows=40, batch_rows=8
    )
    pq.write_table(records, tmp_path / "whole.parquet", row_group_size=20)
    score_here(bundle, [str(tmp_path / "whole.parquet")], tmp_path / "all", unit_rows=40, batch_rows=8)
    rejected = {row["row"]: row for row in _quarantine(tmp_path / "out")}
    assert {row: r["reason"] for row, r in rejected.items()} == {
        3: "id_missing",
        50: "media_empty",
        whole: "media_truncated",
    }
    assert (rejected[50]["id"], rejected[50]["field"]) == (ids[50], "picture")
    assert {r["source"] for r in rejected.values()} == {str(tmp_path / "in.parquet")}
    assert manifest.rows_in == 120 == manifest.rows_ok + 3
    assert manifest.quarantine == {"id_missing": 1, "media_empty": 1, "media_truncated": 1}
    kept = [i for i in range(120) if i not in rejected]
    found, expected = (ledger.read_predictions(str(tmp_path / name)) for name in ("out", "all"))
    expected = expected.take(kept)
    assert found.column("id").equals(expected.column("id")) and found.column("label").equals(
        expected.column("label")
    )
    assert np.allclose(found.column("probability"), expected.column("probability"), atol=1e-6)


def test_a_model_that_gives_nan_rejects_every_record(tiny_dataset: str, tmp_path: Path) -> None:
    manifest = score_here(
        save_tiny_bundle(tiny_dataset, tmp_path / "b", float("nan")), [tiny_dataset], tmp_path / "out"
    )
    assert manifest.quarantine == {"model_nonfinite": 150} and manifest.rows_ok == 0
    assert ledger.read_predictions(str(tmp_path / "out")).num_rows == 0


def test_columns_may_have_other_names_paths_are_fetched_and_others_pass_through(
    bundle: str, records: pa.Table, tmp_path: Path
) -> None:
    (tmp_path / "media").mkdir()
    names = []
    for place, payload in enumerate(records.column("picture").to_pylist()):
        names.append(None if payload is None else f"media/{place}.png")
        if payload is not None:
            (tmp_path / names[-1]).write_bytes(payload)
    gone = next(i for i, name in enumerate(names) if name is not None)
    (tmp_path / names[gone]).unlink()
    by_path = _with(records, "picture", names, pa.string()).append_column("day", pa.array(range(120)))
    renamed = by_path.rename_columns({"picture": "photo", "caption": "words", "id": "key"})
    pq.write_table(renamed, tmp_path / "in.parquet")
    columns = {"picture": "photo", "caption": "words"}
    settings = {"columns": columns, "passthrough": ["day", "words"]}
    manifest = score_here(bundle, [str(tmp_path / "in.parquet")], tmp_path / "out", **settings)
    assert manifest.quarantine == {"uri_not_found": 1}
    table = ledger.read_predictions(str(tmp_path / "out"))
    assert table.column_names[:2] == ["source", "row"] and table.column_names[-2:] == ["day", "words"]
    assert (
        table.column("row").to_pylist()
        == table.column("day").to_pylist()
        == [i for i in range(120) if i != gone]
    )
    pq.write_table(records, tmp_path / "bytes.parquet")
    score_here(bundle, [str(tmp_path / "bytes.parquet")], tmp_path / "direct")
    direct = ledger.read_predictions(str(tmp_path / "direct"))
    assert table.column("label").to_pylist() == [
        x for i, x in enumerate(direct.column("label").to_pylist()) if i != gone
    ]
    with pytest.raises(UsageError, match=r"no column 'picture'.*--set score\.columns\.picture=COLUMN"):
        prepare(bundle, [str(tmp_path / "in.parquet")], "out", ScoreSettings())
    with pytest.raises(UsageError, match=r"score\.columns\.photo: no field of the bundle reads 'photo'"):
        prepare(bundle, [str(tmp_path / "in.parquet")], "out", ScoreSettings(columns={"photo": "picture"}))
    with pytest.raises(UsageError, match=r"score\.passthrough: the output has a column 'label' of its own"):
        prepare(bundle, [str(tmp_path / "bytes.parquet")], "out", ScoreSettings(passthrough=("label",)))


def test_a_bundle_replaced_during_the_run_scores_nothing(
    bundle: str, tiny_dataset: str, tmp_path: Path
) -> None:
    run = prepare(bundle, [tiny_dataset], str(tmp_path / "out"), ScoreSettings())
    worker = ScoreWorker(dataclasses.replace(run.job, fingerprint="that of another"), Pool(workers=1))
    units = pa.Table.from_pylist([unit._asdict() for unit in run.plan])
    for receipt in [row for table in [*worker(units), *worker(units)] for row in table.to_pylist()]:
        with pytest.raises(CheckpointError, match="was replaced while the run was going on"):
            receipt_of(receipt)
    assert not (tmp_path / "out").exists()


# --- on Ray ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(records: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> str:
    """4,800 records in 160 row groups: enough units for something to die in the middle."""
    folder = tmp_path_factory.mktemp("many")
    copies = pa.concat_tables([records] * 40)
    ids = [f"{name}-{row}" for row, name in enumerate(copies.column("id").to_pylist())]
    pq.write_table(_with(copies, "id", ids), folder / "in.parquet", row_group_size=30)
    return str(folder / "in.parquet")


UNITS = {"unit_rows": 30, "batch_rows": 16}
PARTS = 160


def _wait_for_parts(output: Path, count: int, stop: threading.Event) -> None:
    while len(list((output / "data").glob("*.parquet"))) < count and not stop.is_set():
        time.sleep(0.01)


def _worker_pids() -> set[int]:
    """Processes of scoring actors; Ray names a process by what it runs."""
    return {process.pid for process in psutil.Process().children(recursive=True) if _is_scoring(process)}


def test_killed_actors_are_replaced_and_every_row_is_scored_once(
    ray_session: None, bundle: str, many: str, tmp_path: Path
) -> None:
    stop, killed = threading.Event(), []
    before = _worker_pids()

    def kill_one() -> None:
        _wait_for_parts(tmp_path, 10, stop)
        for pid in sorted(_worker_pids() - before)[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    assassin = threading.Thread(target=kill_one, daemon=True)
    assassin.start()
    try:
        result = score(bundle, [many], str(tmp_path), ScoreSettings.model_validate(UNITS), num_workers=2)
    finally:
        stop.set()
        assassin.join()
    assert killed, "no actor was killed"
    assert (result.manifest.rows_in, result.manifest.rows_ok, result.manifest.files.rows) == (
        4800,
        4800,
        PARTS,
    )
    assert verify_scoring(str(tmp_path)) == (0, 0, [])
    ids = ledger.read_predictions(str(tmp_path)).column("id").to_pylist()
    assert ids == pq.read_table(many, columns=["id"]).column("id").to_pylist()


def _is_scoring(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one of these as well
        title = " ".join(process.cmdline())
        return title.startswith("ray::") and "ScoreWorker" in title
    return False


def _end(orphans: list[psutil.Process]) -> None:
    """Wait until the workers have ended by themselves, as they do without a driver; end what Ray leaves behind."""
    deadline = time.monotonic() + 30
    while any(map(_is_scoring, orphans)):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.05)
    for process in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


COMMAND = """
import sys
from xmodal_dist import runtime
from xmodal_dist.score.job import score
from xmodal_dist.score.settings import ScoreSettings
with runtime.connect(num_cpus=2):
    score(sys.argv[1], [sys.argv[2]], sys.argv[3], ScoreSettings(unit_rows=30, batch_rows=16))
"""


def test_a_killed_driver_leaves_a_run_that_the_same_call_finishes(
    ray_session: None, bundle: str, many: str, tmp_path: Path
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")}
    driver = subprocess.Popen(
        [sys.executable, "-c", COMMAND, bundle, many, str(tmp_path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    timeout = threading.Event()
    timer = threading.Timer(120, timeout.set)
    timer.start()
    _wait_for_parts(tmp_path, 20, timeout)
    timer.cancel()
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    _end(family)
    committed = ledger.committed_units(str(tmp_path))
    assert 20 <= len(committed) < PARTS, "the driver was to die in the middle"
    unfinished = verify_scoring(str(tmp_path))
    assert unfinished.duplicated == 0 and unfinished.lost == 30 * (PARTS - len(committed))

    settings = ScoreSettings.model_validate(UNITS)
    result = score(bundle, [many], str(tmp_path), settings, num_workers=2)
    assert result.rows_scored_now == unfinished.lost
    assert verify_scoring(str(tmp_path)) == (0, 0, [])
    events = [
        json.loads(line) for path in tmp_path.glob("_events/*") for line in path.read_text().splitlines()
    ]
    (resumed,) = [event for event in events if event["event"] == "resumed"]
    assert resumed["units_done"] == len(committed) and resumed["rows_done"] == 30 * len(committed)

    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    again = score(bundle, [many], str(tmp_path), settings, num_workers=2)
    assert again.rows_scored_now == 0 and again.manifest == result.manifest
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == times
    with pytest.raises(SpecDiffersError, match="top_k: the run has 3, this command 2"):
        score(bundle, [many], str(tmp_path), ScoreSettings.model_validate({**UNITS, "top_k": 2}))


def test_too_many_bad_records_stop_the_job_and_a_higher_limit_goes_on(
    ray_session: None, bundle: str, records: pa.Table, tmp_path: Path
) -> None:
    pictures = [
        p[:60] if p is not None and i % 10 == 0 else p
        for i, p in enumerate(records.column("picture").to_pylist())
    ]
    pq.write_table(_with(records, "picture", pictures), tmp_path / "in.parquet", row_group_size=30)
    inputs, output = [str(tmp_path / "in.parquet")], str(tmp_path / "out")
    with pytest.raises(BudgetExceededError, match=r"score\.max_bad_fraction=0\.01 allows.*out/quarantine"):
        score(bundle, inputs, output, ScoreSettings(unit_rows=30), num_workers=1)
    assert ledger.load_manifest(output) is None
    committed = len(ledger.committed_units(output))
    result = score(bundle, inputs, output, ScoreSettings(unit_rows=30, max_bad_fraction=0.2), num_workers=1)
    # A unit that was under way when the job stopped may have been committed since.
    assert result.rows_scored_now <= 30 * (4 - committed) < 120
    assert result.manifest.rows_bad == len(_quarantine(tmp_path / "out")) > 1
    assert verify_scoring(output) == (0, 0, [])


def test_an_error_in_a_worker_keeps_its_class(
    ray_session: None, bundle: str, records: pa.Table, tmp_path: Path
) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(records, path, compression="none", write_page_checksum=True, use_dictionary=False)
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 2] ^= 255
    path.write_bytes(bytes(payload))
    with pytest.raises(DataError, match=r"in\.parquet: rows 0 to 120 cannot be read"):
        score(bundle, [str(path)], str(tmp_path / "out"), ScoreSettings(), num_workers=1)
    assert not (tmp_path / "out" / ledger.manifest_name(1)).exists()
