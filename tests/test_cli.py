"""The commands as a user types them: the main job from a table to verified predictions, and the usual mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.report.pages import well_formed
from xmodal_dist import config
from xmodal_dist.cli import main
from xmodal_dist.report.page import self_contained

FIELDS = ("picture=image", "caption=text", "weather=tabular:height,kind_of_day")
EVALUATION = "run/evaluation/test"
TRAIN = ("--set", "train.epochs=6", "--set", "train.batch_size=24", "--set", "model.width=16")


def _xmodal(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == code, err
    return out, err


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


def _main_job(capsys: pytest.CaptureFixture[str], source: Path, place: Path) -> dict[str, Any]:
    dataset, run, bundle = str(place / "dataset"), str(place / "run"), str(place / "run" / "bundle")
    fields = [part for field in FIELDS for part in ("--field", field)]
    _xmodal(capsys, "pack", str(source), dataset, *fields)
    _xmodal(capsys, "train", "--data", dataset, "--output", run, "--num-workers", "2", *TRAIN)
    out, _ = _xmodal(capsys, "evaluate", "--bundle", bundle, "--data", dataset, "--json")
    metrics: dict[str, Any] = json.loads(out)
    inputs = [str(p) for p in sorted((place / "dataset" / "data").glob("*.parquet"))]
    _xmodal(capsys, "score", "--bundle", bundle, "--input", *inputs, "--output", str(place / "scored"))
    return metrics


def test_the_main_job(
    ray_session: None, capsys: pytest.CaptureFixture[str], tiny_source: Path, workplace: Path
) -> None:
    metrics = _main_job(capsys, tiny_source, workplace)
    assert metrics["rows"] == 15 and metrics["accuracy"] > 0.8
    assert set(metrics["per_subset"]) >= {"picture", "caption", "weather", "picture+caption+weather"}
    assert json.loads((workplace / EVALUATION / "metrics.json").read_text()) == metrics
    assert pq.read_table(workplace / EVALUATION / "predictions.parquet").num_rows == 15
    for page in ("run/report.html", f"{EVALUATION}/report.html", "scored/report.html"):
        assert (workplace / page).read_text().startswith("<!DOCTYPE html>")
    scored = pq.read_table(workplace / "scored" / "data")
    assert scored.num_rows == 150 and scored.column_names[:4] == ["id", "label", "probability", "top_k"]
    assert len(set(scored.column("id").to_pylist())) == 150


def test_the_run_has_one_page_which_is_made_again_to_the_byte_from_its_files(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    page = (workplace / "run" / "report.html").read_text()
    self_contained(page)
    well_formed(page)
    for heading in (
        "Results by split", "Learning", "Loss", "Epochs", "Test split", "Confusion matrix", "Precision and recall",
        "Reliability", "What each modality contributes", "Classes", "Worst errors", "Speed", "Where the time went",
        "Configuration", "Environment",
    ):  # fmt: skip
        assert f">{heading}</h" in page, heading
    for shown in (
        "train.seed 0",
        "of CPU time in workers and readers",
        "Python 3.",
        "epochs: 6",
        "xmodal-dist ",
    ):
        assert shown in page, shown
    again = workplace / "again.html"
    out, _ = _xmodal(capsys, "report", str(workplace / "run"), "--output", str(again))
    assert str(again) in out and again.read_text() == page
    (workplace / "run" / "report.html").unlink()
    _xmodal(capsys, "report", str(workplace / "run"))
    assert (workplace / "run" / "report.html").read_text() == page
    settings = config.load(str(workplace / "run" / "config.yaml"))
    assert settings.train.epochs == 6 and settings.model.width == 16 and len(settings.fields) == 3


def test_everything_it_made_verifies(
    ray_session: None, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    for name in ("dataset", "run/bundle", "scored"):
        out, _ = _xmodal(capsys, "verify", str(workplace / name))
        assert out.splitlines()[-1] == "lost=0 duplicated=0 failed_checks=0"
    out, _ = _xmodal(capsys, "verify", str(workplace / "scored"), "--json")
    assert json.loads(out) == {"lost": 0, "duplicated": 0, "failed_checks": []}


def test_explain_writes_a_page_and_prints_contributions(
    capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    paths = ("--bundle", str(workplace / "run" / "bundle"), "--data", str(workplace / "dataset"))
    out, _ = _xmodal(capsys, "explain", *paths, "--output", str(workplace / "why"), "--rows", "3")
    assert "15 of 15 records; 0 could not be read" in out and "caption" in out
    assert (workplace / "why" / "report.html").read_text().startswith("<!DOCTYPE html>")
    out, _ = _xmodal(
        capsys,
        "explain",
        *paths,
        "--output",
        str(workplace / "x"),
        "--split",
        "val",
        "--max-rows",
        "4",
        "--json",
    )
    assert json.loads(out)["rows"] == 4


def test_a_bundle_is_calibrated_anew_and_what_it_cannot_promise_is_told(
    ray_session: None, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    bundle, dataset, other = (str(workplace / name) for name in ("run/bundle", "dataset", "calibrated"))
    trained = json.loads((workplace / "run" / "bundle" / "MANIFEST.json").read_text())
    assert "calibration.json" in trained["files"], "training calibrates"
    command = ("calibrate", "--bundle", bundle, "--data", dataset, "--split", "train", "--output", other)
    out, _ = _xmodal(capsys, *command, "--json")
    found = json.loads(out)
    assert found["split"] == "train" and found["whole"]["rows"] == 120
    assert found["fingerprint"] != trained["fingerprint"]
    out, _ = _xmodal(capsys, "verify", other)
    assert "failed_checks=0" in out
    _, err = _xmodal(capsys, *command, code=2)
    assert "already holds files" in err
    inputs = str(workplace / "dataset" / "data")
    arguments = ("score", "--bundle", bundle, "--input", inputs, "--output", str(workplace / "y"))
    _, err = _xmodal(capsys, *arguments, "--set", "score.target_precision=0.98", code=2)
    assert "0.98 is out of reach: of the 15 records of 'val'" in err


def test_a_split_that_is_not_there_is_named(
    ray_session: None, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    bundle, dataset = str(workplace / "run" / "bundle"), str(workplace / "dataset")
    arguments = ("evaluate", "--bundle", bundle, "--data", dataset, "--output", str(workplace / "x"))
    _, err = _xmodal(capsys, *arguments, "--split", "holdout", code=2)
    assert "no split 'holdout'; its splits: test, train, val" in err


def test_verify_finds_a_flipped_byte(
    ray_session: None, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    part = next((workplace / "dataset" / "data").glob("train-*"))
    whole = part.read_bytes()
    try:
        part.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        out, err = _xmodal(capsys, "verify", str(workplace / "dataset"), code=70)
    finally:
        part.write_bytes(whole)
    assert part.name in out and "did not pass" in err


def test_inspect_shows_fields_splits_and_classes(
    capsys: pytest.CaptureFixture[str], tiny_dataset: str
) -> None:
    out, _ = _xmodal(capsys, "inspect", tiny_dataset)
    for word in ("picture", "caption", "weather", "train", "val", "test", "red", "green", "blue"):
        assert word in out


def test_config_prints_checks_and_describes_itself(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, _ = _xmodal(capsys, "config", "print", "--set", "train.epochs=3")
    file = tmp_path / "run.yaml"
    file.write_text(out)
    assert "epochs: 3" in out
    assert "ok" in _xmodal(capsys, "config", "validate", str(file))[0]
    assert "train" in json.loads(_xmodal(capsys, "config", "schema")[0])["properties"]
    assert "hf:NAME" in _xmodal(capsys, "config", "encoders")[0]
    file.write_text("train:\n  lerning_rate: 1\n")
    _, err = _xmodal(capsys, "config", "validate", str(file), code=2)
    assert "did you mean 'learning_rate'?" in err


def test_doctor_finds_this_machine_fit(
    ray_session: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, _ = _xmodal(capsys, "doctor", "--path", str(tmp_path), "--json")
    levels = {finding["check"]: finding["level"] for finding in json.loads(out)}
    assert levels["ray"] == levels[f"storage {tmp_path}"] == levels["torch"] == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("train", "--data", "nowhere"), 2, "nowhere' is not a packed dataset"),
        (("train", "--data", "{dataset}", "--set", "train.epoch=1"), 2, "did you mean 'epochs'?"),
        (("train", "--data", "{dataset}", "--set", "fields.picure.size=1"), 2, "picture, caption, weather"),
        (("evaluate", "--bundle", "nowhere", "--data", "{dataset}", "--output", "x"), 66, "is not a bundle"),
        (("pack", "nowhere.csv", "x"), 2, "nowhere.csv"),
        (("pack", "{source}", "x", "--field", "picture"), 2, "expected NAME=KIND"),
        (("pack", "{source}", "x", "--split-ratio", "1,2"), 2, "expected three numbers"),
        (("verify", "nowhere"), 2, "is not a dataset"),
        (("trian",), 2, "trian"),
    ],
)
def test_mistakes_are_answered_in_words_without_a_traceback(
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
    tiny_dataset: str,
    tiny_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [a.format(dataset=tiny_dataset, source=tiny_source) for a in arguments]
    _, err = _xmodal(capsys, *filled, code=code)
    assert words in err and "Traceback" not in err


def test_a_sweep_of_the_learning_rate_writes_what_it_suggests(
    capsys: pytest.CaptureFixture[str], tiny_dataset: str, tmp_path: Path
) -> None:
    sweep = ("find-lr", "--data", tiny_dataset, "--output", str(tmp_path), "--set", "model.width=16")
    out, _ = _xmodal(capsys, *sweep, "--set", "train.batch_size=24", "--steps", "30")
    found = json.loads((tmp_path / "find_lr.json").read_text())
    assert f"--set train.learning_rate={found['suggestion']:g}" in out
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    _, err = _xmodal(capsys, *sweep, "--lowest", "2", code=2)
    assert "0 < --lowest < --highest" in err


def test_the_command_line_starts_without_what_is_slow_to_import() -> None:
    slow = {"fsspec", "matplotlib", "numpy", "pyarrow", "ray", "sklearn", "torch"}
    code = f"import sys, xmodal_dist.cli; print(sorted({slow} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
