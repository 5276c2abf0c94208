"""Runs whose number of workers changes: nodes leave and join, a kill is followed by another number of workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.assassin import assassin, has_done
from xmodal_dist.bundle import load_bundle
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import RunAgainError, UsageError
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.chunks import Schedule
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.train.launch import launch
from xmodal_dist.train.log import read_metrics
from xmodal_dist.train.settings import TrainSettings

STEPS_PER_EPOCH, TRAIN_ROWS, VAL_ROWS = 20, 120, 15
SETTINGS: dict[str, Any] = {"batch_size": 6, "lanes": 6, "log_every_steps": 1}


def _train(dataset: str, run: Path, *, resume: bool = False, placement: str = "local", **train: Any) -> None:
    launch(
        dataset,
        str(run),
        fields={},
        model=ModelSettings(width=16),
        train=TrainSettings.model_validate({**SETTINGS, **train}),
        pipeline=PipelineSettings.model_validate({"window_rows": 8, "placement": placement}),
        resume=resume,
    )


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_bundle(str(run / "bundle")).model.state_dict()


def _different(one: Path, two: Path) -> list[str]:
    ours, theirs = _weights(one), _weights(two)
    assert ours.keys() == theirs.keys()
    return [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]


def _starts(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(str(run)) if line["event"] == "start"]


@pytest.fixture(scope="module")
def alone(ray_session: None, tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on one worker, undisturbed."""
    run = tmp_path_factory.mktemp("alone") / "run"
    _train(tiny_dataset, run, num_workers=1, epochs=2)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "before", "after"),
    [
        pytest.param(0.1, 2, 1, marks=pytest.mark.soak),
        (0.5, 1, 2),
        pytest.param(0.9, 2, 1, marks=pytest.mark.soak),
    ],
)
def test_a_run_killed_anywhere_in_an_epoch_goes_on_exactly_with_another_number_of_workers(
    alone: Path, tiny_dataset: str, tmp_path: Path, share: float, before: int, after: int
) -> None:
    run = tmp_path / "run"
    step = STEPS_PER_EPOCH + round(share * STEPS_PER_EPOCH)
    exact = {"epochs": 2, "checkpoint_every_steps": 1}
    killing = assassin(run, -1, lambda lines: has_done(lines, step))
    with killing, pytest.raises(RunAgainError, match="--resume"):
        _train(tiny_dataset, run, num_workers=before, max_failures=0, **exact)
    _train(tiny_dataset, run, num_workers=after, resume=True, **exact)
    first, second = _starts(run)
    assert (len(first["workers"]), len(second["workers"])) == (before, after)
    assert second["step"] >= step - 1, "steps that had a checkpoint were repeated"
    steps = [line["step"] for line in read_metrics(str(run)) if line["event"] == "step"]
    assert steps == list(range(1, 2 * STEPS_PER_EPOCH + 1))
    goodput = json.loads((run / "goodput.json").read_text())
    left = 2 * TRAIN_ROWS - second["step"] * SETTINGS["batch_size"]
    assert goodput["records"] == left
    # Validation records are read for the epoch that was left, and for calibration.
    assert goodput["reading"]["rows_local"] == left + 2 * VAL_ROWS, "rows were read to be thrown away"
    assert _different(alone, run) == []


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_reading_begins_at_the_step_of_the_checkpoint(tiny_dataset: str, num_workers: int) -> None:
    schedule = Schedule(load_manifest(tiny_dataset), seed=0, lanes=6, rows_per_lane=1, window_rows=8)
    for rank in range(num_workers):
        share = {"rank": rank, "num_workers": num_workers, "augment": True}
        whole = [schedule.places(chunk) for chunk in schedule.chunks("train", 1, **share)]
        rows = [row for places in whole for row in zip(places.shard, places.row, strict=True)]
        for start in range(STEPS_PER_EPOCH):
            chunks = list(schedule.chunks("train", 1, start_step=start, **share))
            assert chunks[0].start_step == start
            rest = [schedule.places(chunk) for chunk in chunks]
            found = [row for places in rest for row in zip(places.shard, places.row, strict=True)]
            assert found == rows[start * schedule.rows_per_step(rank, num_workers) :]


def test_an_elastic_run_that_could_not_start_is_told_why(
    ray_session: None, tiny_dataset: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"train\.min_workers=5, but the cluster has only 4 CPUs now"):
        _train(tiny_dataset, tmp_path / "run", num_workers=6, min_workers=5)
    with pytest.raises(UsageError, match=r"needs pipeline\.placement=local"):
        _train(tiny_dataset, tmp_path / "run", num_workers=2, min_workers=1, placement="ray")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_nodes_leave_and_join_and_the_weights_are_those_of_one_undisturbed_worker(
    ray_session: None, tiny_dataset: str, tmp_path: Path
) -> None:
    run, epochs = tmp_path / "elastic", 10
    elastic = {"num_workers": 2, "min_workers": 1, "resize_interval_s": 2, "checkpoint_every_steps": 1}
    program = Path(__file__).with_name("elastic_cluster.py")
    settings = json.dumps({**SETTINGS, **elastic, "epochs": epochs})
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(program), tiny_dataset, str(run), settings],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0 and (run / "bundle").exists(), done.stdout + done.stderr
    starts = _starts(run)
    assert [len(line["workers"]) for line in starts][:3] == [2, 1, 2]
    assert 0 < starts[1]["step"] < starts[2]["step"]
    steps = [line["step"] for line in read_metrics(str(run)) if line["event"] == "step"]
    assert steps == list(range(1, epochs * STEPS_PER_EPOCH + 1))
    _train(tiny_dataset, tmp_path / "alone", num_workers=1, epochs=epochs)
    assert _different(tmp_path / "alone", run) == []
