"""A whole search on Ray Tune: trials that diverge or are killed, seeds repeated, a bundle tested once, and resuming."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.assassin import assassin
from xmodal_dist import api, config
from xmodal_dist.bundle import load_bundle
from xmodal_dist.cli import main
from xmodal_dist.errors import DataError, SpecDiffersError, UsageError
from xmodal_dist.report.page import self_contained
from xmodal_dist.train.log import read_metrics
from xmodal_dist.tune.ledger import read_ledger

pytestmark = pytest.mark.usefixtures("ray_session")

EPOCHS, SEEDS, KILLED = 3, 2, 2
SPACE = {
    "train.learning_rate": {"choice": [0.01, 1e30]},
    "model.dropout": {"choice": [0.1, 0.3]},
}
SET = (
    f"train.epochs={EPOCHS}", "train.batch_size=12", "train.lanes=6", "model.width=16", "pipeline.window_rows=8",
    "search.algorithm=grid", "search.scheduler=none", "search.max_failures=0", "search.repeat_top=1",
    "search.max_concurrent=1", "search.metrics=[accuracy, parameters]",
)  # fmt: skip


def _config(folder: Path, space: dict[str, Any]) -> str:
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump({"search": {"space": space}}))
    return str(path)


@pytest.fixture(scope="module")
def searched(tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of four beside the default settings; two diverge, one is killed; the best is trained with two seeds."""
    folder = tmp_path_factory.mktemp("tune")
    output = folder / "search"
    with assassin(output / "trials" / f"{KILLED:05d}", 0, lambda lines: True):
        api.tune(
            tiny_dataset, str(output), config=_config(folder, SPACE), set=SET, trials=5, repeat_seeds=SEEDS
        )
    return output


@pytest.mark.slow
def test_every_trial_ends_once_whatever_becomes_of_it(searched: Path) -> None:
    lines = [json.loads(line) for line in (searched / "trials.jsonl").read_text().splitlines()]
    tried = [line for line in lines if line["repeat_of"] is None and line["state"] != "failed"]
    top = min(tried, key=lambda line: (-line["metrics"]["accuracy"], line["trial"]))["trial"]
    repeats = [(line["repeat_of"], line["seed"]) for line in lines if line["repeat_of"] is not None]
    assert sorted(repeats) == sorted({(0, 1), (top, 1)}), "the best one, and the run's own settings"
    assert sorted(line["trial"] for line in lines) == list(range(5 + len(repeats)))
    by_number = {line["trial"]: line for line in lines}
    assert (by_number[KILLED]["state"], by_number[KILLED]["reason"]) == ("failed", "crashed")
    for line in lines:
        if line["values"]["train.learning_rate"] == 1e30 and line["trial"] != KILLED:
            assert (line["state"], line["reason"]) == ("failed", "diverged") and "lower" in line["message"]
    first = by_number[0]
    assert first["state"] == "finished" and first["epochs"] == EPOCHS
    assert first["values"] == {"train.learning_rate": 0.002, "model.dropout": 0.5}
    assert first["cpus"] == 1.0 and first["cpu_s"] > 0 and first["wall_s"] > 0
    assert list((searched / "trials" / "00000" / "tensorboard").iterdir())
    assert not (searched / "ray").exists()


@pytest.mark.slow
def test_the_best_on_validation_becomes_the_bundle_and_is_tested_once(
    searched: Path, tiny_dataset: str
) -> None:
    result = json.loads((searched / "result.json").read_text())
    records = read_ledger(str(searched))
    best = records[result["best"]["trial"]]
    evidence, chosen = result["evidence"], result["choices"][0]
    assert len(chosen["seeds"]) == SEEDS
    assert (chosen["trial"] == 0) == (evidence is None or not evidence["is_better"])
    assert result["trials"]["finished"] == len([r for r in records.values() if r.state == "finished"])
    assert result["epochs"] <= result["epochs_asked"] == len(records) * EPOCHS
    highest = max(r.metrics["accuracy"] for r in records.values() if r.state == "finished")
    front = [n for n, r in records.items() if r.state == "finished" and r.metrics["accuracy"] == highest]
    assert result["pareto"] == sorted(front), "all networks have as many parameters"
    bundle = load_bundle(str(searched / "bundle"))
    assert bundle.metrics["val"]["accuracy"] == best.metrics["accuracy"]
    assert bundle.metrics["epoch"] == best.best_epoch and bundle.calibration is not None
    test = json.loads((searched / "test.json").read_text())
    assert test["bundle"] == bundle.fingerprint and test["rows"] == 15
    settings = config.load(str(searched / "best.yaml"))
    assert settings.train.learning_rate == best.values["train.learning_rate"]
    assert settings.train.seed == best.seed and settings.model.width == 16


@pytest.mark.slow
def test_the_page_and_the_table_show_it(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (searched / "report.html").read_text()
    self_contained(page)
    for text in (
        "History",
        "Learning curves",
        "The best settings, to copy",
        "model.dropout",
        "diverged",
        "crashed",
    ):
        assert text in page
    with pytest.raises(SystemExit):
        main(["tune", "show", str(searched)])
    out, _ = capsys.readouterr()
    assert "diverged" in out and "best: trial" in out and "test: accuracy" in out


@pytest.mark.slow
def test_a_search_is_resumed_from_its_files(searched: Path, tiny_dataset: str, tmp_path: Path) -> None:
    output = tmp_path / "search"
    shutil.copytree(searched, output)
    lines = (output / "trials.jsonl").read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if json.loads(line)["trial"] == 0)
    rest = [line for i, line in enumerate(lines) if i != at]
    # As a killed driver leaves it: one trial ended without a line, the last line cut short.
    (output / "trials.jsonl").write_text("".join(rest) + lines[at][:20])
    told = (output / "test.json").stat().st_mtime_ns
    files = {path: path.stat().st_mtime_ns for path in (output / "trials").rglob("*.safetensors")}
    with pytest.raises(SpecDiffersError, match=r"space\.model\.dropout"):
        other = {**SPACE, "model.dropout": {"choice": [0.1, 0.4]}}
        api.tune(tiny_dataset, str(output), config=_config(tmp_path, other), set=SET, trials=5, resume=True)
    given: dict[str, Any] = {
        "config": _config(tmp_path, SPACE),
        "set": SET,
        "trials": 5,
        "repeat_seeds": SEEDS,
    }
    with pytest.raises(UsageError, match="--resume"):
        api.tune(tiny_dataset, str(output), **given)
    api.tune(tiny_dataset, str(output), **given, resume=True)
    records = read_ledger(str(output))
    assert {n: (r.state, r.epochs, r.metrics) for n, r in records.items()} == {
        n: (r.state, r.epochs, r.metrics) for n, r in read_ledger(str(searched)).items()
    }
    after = {path: path.stat().st_mtime_ns for path in files}
    assert [p for p in files if files[p] != after[p] and "checkpoints" in str(p)] == [], (
        "a trial was repeated"
    )
    assert (output / "test.json").stat().st_mtime_ns == told, "the test split was looked at again"


@pytest.mark.slow
def test_a_trial_that_is_better_beyond_chance_takes_the_place_of_the_settings_of_the_run(
    tiny_dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"train.learning_rate": {"choice": [0.01]}}
    given = [*(s for s in SET if "metrics" not in s), "train.learning_rate=0.000001"]
    output, config_path = tmp_path / "search", _config(tmp_path, space)
    alone = api.tune(tiny_dataset, str(output), config=config_path, set=given, trials=1)
    assert alone.best.trial == 0 and alone.summary["evidence"] is None
    tested = json.loads((output / "test.json").read_text())
    found = api.tune(tiny_dataset, str(output), config=config_path, set=given, trials=2, resume=True)
    test = json.loads((output / "test.json").read_text())
    assert test["bundle"] != tested["bundle"] and test["accuracy"] > tested["accuracy"]
    evidence = found.summary["evidence"]
    assert found.best.trial == evidence["trial"] == 1 and evidence["is_better"]
    first, second = (found.choices[place].mean for place in (1, 0))
    assert evidence["gain"] == pytest.approx(first - second, rel=1e-3), (
        "as validation said while they trained"
    )
    with pytest.raises(SystemExit):
        main(["tune", "show", str(output)])
    assert "better than the default settings beyond chance" in " ".join(capsys.readouterr().out.split())


def test_a_search_needs_validation_records(tiny_source: Path, tmp_path: Path) -> None:
    api.pack(
        str(tiny_source),
        str(tmp_path / "data"),
        field=["weather=tabular:height"],
        split_ratio=(1.0, 0.0, 0.0),
    )
    with pytest.raises(DataError, match="val records"):
        api.tune(str(tmp_path / "data"), str(tmp_path / "search"))


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "pbt"])
def test_schedulers_end_with_trials_of_any_size(
    tiny_dataset: str, tmp_path: Path, scheduler: str, num_workers: int
) -> None:
    space = {"train.learning_rate": {"loguniform": [1e-4, 1e-1]}, "model.dropout": {"uniform": [0.0, 0.5]}}
    given = [*(s for s in SET if "search." not in s or "concurrent" in s), f"search.scheduler={scheduler}"]
    given.append("search.algorithm=random")
    found = api.tune(
        tiny_dataset, str(tmp_path / "search"), config=_config(tmp_path, space), set=given, trials=4,
        num_workers=num_workers,
    )  # fmt: skip
    assert sum(found.summary["trials"].values()) == 4 and "failed" not in found.summary["trials"]
    assert not [g for g in _placement_groups() if g["state"] != "REMOVED"]


@pytest.mark.soak
@pytest.mark.slow
def test_trials_shorter_than_the_start_of_a_process_share_those_that_there_may_be(
    tiny_dataset: str, tmp_path: Path
) -> None:
    space = {"train.learning_rate": {"loguniform": [1e-4, 1e-1]}}
    given = [*(s for s in SET if "search." not in s), "train.epochs=1", "search.scheduler=none"]
    given += ["search.algorithm=random", "search.max_concurrent=2"]
    output = tmp_path / "search"
    api.tune(tiny_dataset, str(output), config=_config(tmp_path, space), set=given, trials=8)
    starts = [read_metrics(str(run))[0]["workers"][0] for run in (output / "trials").iterdir()]
    assert len(starts) == 8 and len({worker["pid"] for worker in starts}) == 2


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_driver_that_is_killed_twice_loses_no_trial_and_repeats_none(
    tiny_dataset: str, tmp_path: Path, num_workers: int
) -> None:
    output, planned = tmp_path / "search", 5
    space = {"train.learning_rate": {"loguniform": [1e-4, 1e-1]}, "model.dropout": {"uniform": [0.0, 0.5]}}
    command = [
        sys.executable, "-m", "xmodal_dist.cli", "tune", "--data", tiny_dataset, "--output", str(output), "--resume",
        "--config", _config(tmp_path, space), "--trials", str(planned), "--num-workers", str(num_workers),
    ]  # fmt: skip
    for setting in SET:
        if "search." not in setting:
            command += ["--set", setting]
    kept: dict[int, Any] = {}
    for lines in (1, 3, None):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while driver.poll() is None and (lines is None or len(read_ledger(str(output))) < lines):
            time.sleep(0.2)
        driver.kill()
        assert driver.wait() == (0 if lines is None else -signal.SIGKILL)
        records = read_ledger(str(output))
        assert {n: records[n] for n in kept} == kept, "a finished trial was run again"
        kept = records
    table = [json.loads(line)["trial"] for line in (output / "trials.jsonl").read_text().splitlines()]
    assert sorted(table) == list(range(planned))
    assert all(record.state != "failed" for record in kept.values())


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_interrupted_search_says_how_to_go_on_and_does(tiny_dataset: str, tmp_path: Path) -> None:
    output = tmp_path / "search"
    space = {"train.learning_rate": {"loguniform": [1e-4, 1e-1]}}
    command = [
        sys.executable, "-m", "xmodal_dist.cli", "tune", "--data", tiny_dataset, "--output", str(output), "--resume",
        "--config", _config(tmp_path, space), "--trials", "2",
    ]  # fmt: skip
    for setting in SET:
        if "search." not in setting:
            command += ["--set", setting]
    # Before a trial, while one trains, and while the bundle is tested.
    for begun in ("search.json", "trials/*/checkpoints/*-end/MANIFEST.json", "result.json"):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while driver.poll() is None and not list(output.glob(begun)):
            time.sleep(0.05)
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=200)
        assert (driver.returncode, "--resume goes on" in said) == (75, True), said
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=200)
    assert {record.state for record in read_ledger(str(output)).values()} <= {"finished", "stopped"}
    assert json.loads((output / "test.json").read_text())["rows"] > 0


def _placement_groups() -> list[dict[str, Any]]:
    from ray.util import placement_group_table

    return list(placement_group_table().values())
