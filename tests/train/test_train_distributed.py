"""Whole runs on Ray: two workers equal one, a killed worker changes nothing, and mistakes are told before they cost."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.assassin import assassin, has_done
from xmodal_dist.bundle import check_files, load_bundle
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import BudgetExceededError, SpecDiffersError, UsageError, XmodalError
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.chunks import Schedule
from xmodal_dist.pipeline.reader import ChunkReader
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.train.launch import TrainResult, launch
from xmodal_dist.train.log import read_metrics
from xmodal_dist.train.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("ray_session")

EPOCHS = 4


def _train(
    dataset: str,
    run: Path,
    num_workers: int,
    resume: bool = False,
    model: ModelSettings = ModelSettings(width=16),  # noqa: B008
    **train: Any,
) -> TrainResult:
    settings = {
        "epochs": EPOCHS,
        "batch_size": 12,
        "lanes": 6,
        "checkpoint_every_steps": 3,
        "log_every_steps": 1,
    }
    return launch(
        dataset,
        str(run),
        fields={},
        model=model,
        train=TrainSettings.model_validate({**settings, "num_workers": num_workers, **train}),
        pipeline=PipelineSettings(window_rows=8, placement="ray" if num_workers > 1 else "local"),
        resume=resume,
    )


@pytest.fixture(scope="module")
def alone(tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return _train(tiny_dataset, tmp_path_factory.mktemp("alone") / "run", 1)


@pytest.fixture(scope="module")
def killed(tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run on two workers, one of which is killed in the middle of the second epoch."""
    run = tmp_path_factory.mktemp("killed") / "run"
    with _killing(run):
        return _train(tiny_dataset, run, 2)


def _killing(run: Path) -> AbstractContextManager[None]:
    return assassin(run, 1, lambda lines: has_done(lines, lines[0]["steps_per_epoch"] + 4))


def _weights(result: TrainResult) -> dict[str, torch.Tensor]:
    return load_bundle(result.bundle).model.state_dict()


def test_a_killed_worker_is_replaced_and_every_epoch_counts_every_record(
    killed: TrainResult, tiny_dataset: str
) -> None:
    lines = read_metrics(killed.run)
    starts = [line for line in lines if line["event"] == "start"]
    assert len(starts) == 2, "the worker was not killed, or the run did not recover"
    assert starts[1]["step"] > 0, "the run began again from the start"
    assert starts[1]["step"] % starts[1]["steps_per_epoch"] != 0, "the run was to resume inside an epoch"
    rows = json.loads((Path(tiny_dataset) / "manifest.json").read_text())["splits"]["train"]["rows"]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == list(range(EPOCHS))
    assert [line["records"] for line in epochs] == [rows] * EPOCHS
    goodput = json.loads((Path(killed.run) / "goodput.json").read_text())
    assert goodput["num_workers"] == 2 and goodput["stages_s"]["restarts"] > 0
    assert sum(goodput["stages_s"].values()) == pytest.approx(goodput["wall_s"], rel=0.05)
    steps = [line["step"] for line in lines if line["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))


def test_two_workers_and_a_kill_end_with_the_weights_of_one_undisturbed_worker(
    alone: TrainResult, killed: TrainResult
) -> None:
    one, two = _weights(alone), _weights(killed)
    assert one.keys() == two.keys()
    assert [name for name, tensor in one.items() if not torch.equal(tensor, two[name])] == []
    bundles = [load_bundle(result.bundle) for result in (alone, killed)]
    assert bundles[0].calibration is not None and bundles[0].calibration.whole.rows == 15
    assert bundles[0].calibration == bundles[1].calibration
    assert bundles[0].fingerprint == bundles[1].fingerprint


@pytest.mark.slow
@pytest.mark.soak
def test_so_they_do_with_mixup_balancing_averaged_and_class_weights(
    tiny_dataset: str, tmp_path: Path
) -> None:
    model = ModelSettings(width=16, fusion="attention", balance="ogm")
    asked = {"loss": "focal", "class_weights": "balanced", "mixup_alpha": 0.4, "ema_decay": 0.9}
    alone = _train(tiny_dataset, tmp_path / "alone", 1, model=model, **asked)
    with _killing(tmp_path / "killed"):
        killed = _train(tiny_dataset, tmp_path / "killed", 2, model=model, **asked)
    starts = [line for line in read_metrics(killed.run) if line["event"] == "start"]
    assert len(starts) == 2 and starts[1]["step"] % starts[1]["steps_per_epoch"] != 0
    one, two = _weights(alone), _weights(killed)
    assert [name for name, tensor in one.items() if not torch.equal(tensor, two[name])] == []
    bundles = [load_bundle(result.bundle) for result in (alone, killed)]
    assert bundles[0].calibration is not None and bundles[0].calibration.whole.rows == 15
    assert bundles[0].calibration == bundles[1].calibration
    assert bundles[0].fingerprint == bundles[1].fingerprint
    root = Path(killed.run) / "checkpoints"
    best = [load_file(p / "average.safetensors") for p in root.iterdir()]
    assert any(all(torch.equal(t, one[name]) for name, t in average.items()) for average in best)


def test_validation_is_the_same_on_one_and_two_workers(alone: TrainResult, killed: TrainResult) -> None:
    ours, theirs = ([x for x in read_metrics(r.run) if x["event"] == "epoch"] for r in (alone, killed))
    for a, b in zip(ours, theirs, strict=True):
        assert a["val_rows"] == b["val_rows"]
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-4)
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)


def test_test_predictions_are_the_same_on_one_and_two_workers(
    alone: TrainResult, killed: TrainResult, tiny_dataset: str
) -> None:
    bundles = [load_bundle(result.bundle) for result in (alone, killed)]
    order = Schedule(load_manifest(tiny_dataset), 0, 1, 64, 64)
    reader = ChunkReader(tiny_dataset, bundles[0].specs, order)
    batch = reader.read(next(order.chunks("test", 0, 0, 1, augment=False))).records.to_batch()
    ours, theirs = (bundle.predict(batch, {}).logits[""].softmax(dim=-1) for bundle in bundles)
    assert torch.equal(ours, theirs)


def test_the_run_directory_holds_what_is_promised(alone: TrainResult, tiny_dataset: str) -> None:
    run = Path(alone.run)
    assert check_files(alone.bundle) == []
    assert list((run / "tensorboard").glob("events.*"))
    [command, *_] = json.loads((run / "environment.json").read_text())["commands"]
    assert command["dataset"] == tiny_dataset and command["cluster"]["cpus"] == 4
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["epochs"] == EPOCHS
    goodput = json.loads((run / "goodput.json").read_text())
    assert goodput["records"] == EPOCHS * 120 and goodput["cpu_s_per_record"] > 0
    assert sum(goodput["stages_s"].values()) == pytest.approx(goodput["wall_s"], rel=0.05)
    assert goodput["bound"]["limit"] in {"cores", "loops"} and goodput["bound"]["cores"] <= 4
    assert 0 < goodput["share_of_bound"] < 1
    assert goodput["steady"]["records"] == EPOCHS * 120 - 12, "all but the first step"
    assert goodput["reading"]["rows_local"] >= EPOCHS * (120 + 15)
    assert goodput["first_batch_s"] > goodput["epoch_gap_s"] >= 0
    epochs = [line for line in read_metrics(alone.run) if line["event"] == "epoch"]
    assert all(line["records_per_s"] > 0 and line["wait_for_data_s"] >= 0 for line in epochs)
    assert {p.suffix for p in (run / "bundle").rglob("*") if p.is_file()} == {".json", ".safetensors"}
    train, profile = load_manifest(tiny_dataset).splits["train"], load_bundle(alone.bundle).profile
    assert profile is not None and profile.labels == train.classes
    assert profile.counts.rows == 120 and profile.counts.missing == train.missing


def test_a_finished_run_resumes_to_its_end_at_once_and_other_settings_are_refused(
    alone: TrainResult, tiny_dataset: str
) -> None:
    with pytest.raises(UsageError, match="already holds a run; continue it with --resume"):
        _train(tiny_dataset, Path(alone.run), 1)
    with pytest.raises(SpecDiffersError, match=r"train\.learning_rate was .*, now 0\.5"):
        _train(tiny_dataset, Path(alone.run), 1, resume=True, learning_rate=0.5)
    before = _weights(alone)
    again = _train(tiny_dataset, Path(alone.run), 1, resume=True)
    assert all(torch.equal(before[name], t) for name, t in _weights(again).items())


def test_a_run_directory_with_other_files_is_left_alone(tiny_dataset: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="already holds other files"):
        _train(tiny_dataset, tmp_path, 1)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_more_workers_than_lanes_names_the_setting(tiny_dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.lanes"):
        _train(tiny_dataset, tmp_path / "run", 7)
    with pytest.raises(UsageError, match=r"train\.batch_size=16"):
        _train(tiny_dataset, tmp_path / "run", 1, batch_size=16)


@pytest.fixture
def damaged_dataset(tiny_dataset: str, tmp_path: Path) -> str:
    """The tiny dataset with one training and one validation picture cut short after packing."""
    copy = tmp_path / "damaged"
    shutil.copytree(tiny_dataset, copy)
    for split in ("train", "val"):
        shard = sorted((copy / "data").glob(f"{split}-*"))[0]
        rows = pq.read_table(shard).to_pylist()
        row = next(r for r in rows if r["picture"] is not None)
        row["picture"] = row["picture"][:60]
        pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(shard)), shard, row_group_size=8)
    return str(copy)


def test_records_that_cannot_be_decoded_are_counted_and_named(damaged_dataset: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    _train(damaged_dataset, run, 2, epochs=1, max_bad_fraction=0.05)
    (epoch,) = [line for line in read_metrics(str(run)) if line["event"] == "epoch"]
    assert epoch["records"] == 119 and epoch["val_rows"] == 14 and epoch["val_rows_rejected"] == 1
    named = pq.read_table(run / "quarantine").to_pylist()
    assert sorted(r["source"].split("/")[-1][:3] for r in named) == ["tra", "val"]
    assert {r["field"] for r in named} == {"picture"} and all(r["reason"] and r["message"] for r in named)


def test_too_many_of_them_fail_the_run_at_once_and_say_where_they_are(
    damaged_dataset: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(
        BudgetExceededError, match=r"2 of 135 records .* train\.max_bad_fraction=0 .*quarantine"
    ):
        _train(damaged_dataset, run, 1, max_bad_fraction=0.0)
    starts = [line for line in read_metrics(str(run)) if line["event"] == "start"]
    assert len(starts) == 1, "a restart cannot help"


def test_a_shard_that_is_gone_is_named(tiny_dataset: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "holed")
    shard = sorted((tmp_path / "holed" / "data").glob("val-*"))[0]
    shard.unlink()
    with pytest.raises(XmodalError, match=shard.name):
        _train(str(tmp_path / "holed"), tmp_path / "run", 1, max_failures=0)
