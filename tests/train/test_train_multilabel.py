"""A multilabel model from its source to its scores: pack, train on two workers, evaluate, calibrate, score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.score.runs import score_here
from tests.train.ranks import calibrated_by_ranks
from xmodal_dist import api, multilabel
from xmodal_dist.bundle import Bundle, build_model, load_bundle
from xmodal_dist.calibrate import NOTHING, softmax
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.evaluate import evaluate_label_sets
from xmodal_dist.ingest.pack import PackSettings, pack
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.report.page import self_contained
from xmodal_dist.score import ledger
from xmodal_dist.score.job import prepare
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.train.checkpoint import latest_checkpoint, load_weights
from xmodal_dist.train.find_lr import find_learning_rate
from xmodal_dist.train.job import TrainJob
from xmodal_dist.train.launch import TrainResult, launch
from xmodal_dist.train.optim import adamw, learning_rate_at
from xmodal_dist.train.settings import TrainSettings
from xmodal_dist.train.step import optimizer_step
from xmodal_dist.train.stopwatch import Stopwatch

CPU = torch.device("cpu")
WORDS = {"fruit": "apple pear plum", "metal": "iron zinc tin", "water": "sea lake river", "rare": "unicorn"}
MODEL = ModelSettings(width=16, balance="ogm")
TRAIN: dict[str, Any] = {
    "epochs": 3, "batch_size": 24, "lanes": 4, "learning_rate": 0.02, "mixup_alpha": 0.3, "class_weights": "balanced",
    "log_every_steps": 1,
}  # fmt: skip
PIPELINE = PipelineSettings(window_rows=12, placement="local")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """300 records of 0 to 4 classes, told by words and, weakly, by a number; some of both are missing."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    lines = []
    for index in range(300):
        has = [name for name, share in zip(WORDS, (0.5, 0.3, 0.3, 0.05), strict=True) if rng.random() < share]
        words = [str(rng.choice(WORDS[name].split())) for name in has] + ["and", "so"]
        lines.append(
            {
                "id": f"r{index}",
                "label": has,
                "caption": " ".join(rng.permutation(words)) if rng.random() < 0.9 else None,
                "size": len(has) + rng.normal() if rng.random() < 0.9 else None,
            }
        )
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = PackSettings(rows_per_row_group=16, split_ratio=(0.6, 0.2, 0.2))
    pack(str(folder / "records.jsonl"), str(folder / "dataset"), settings=settings)
    return str(folder / "dataset")


@pytest.fixture(scope="module")
def trained(ray_session: None, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    settings = TrainSettings(num_workers=2, **TRAIN)
    run = str(tmp_path_factory.mktemp("trained") / "run")
    return launch(dataset, run, fields={}, model=MODEL, train=settings, pipeline=PIPELINE, resume=False)


@pytest.fixture(scope="module")
def bundle(trained: TrainResult) -> Bundle:
    return load_bundle(trained.bundle)


def test_two_workers_end_with_the_weights_of_one_to_the_bit(
    trained: TrainResult, bundle: Bundle, dataset: str
) -> None:
    train = TrainSettings(num_workers=2, **TRAIN).for_task("multilabel")
    assert (train.monitor, train.label_smoothing) == ("mean_average_precision", 0.0)
    manifest = load_manifest(dataset)
    job = TrainJob(trained.run, dataset, manifest, bundle.specs, MODEL, train, PIPELINE, 1, 0, False, 0.0)
    theirs = build_model(job.specs, len(manifest.classes), MODEL)
    newest = latest_checkpoint(job.checkpoints, job.digest)
    assert newest is not None, "the run had other settings"
    load_weights(job.checkpoints, newest, theirs, CPU, False)
    torch.manual_seed(train.seed)
    alone = job.new_model()
    optimizer, reader, watch, step = (
        adamw(alone, train.learning_rate, train.weight_decay),
        job.reader(),
        Stopwatch(),
        0,
    )
    total = job.schedule.steps("train") * train.epochs
    alone.train()
    for epoch in range(train.epochs):
        for chunk in job.schedule.chunks("train", epoch, 0, 1, augment=True):
            records = reader.read(chunk).records
            for start in range(0, len(records), train.batch_size):
                batch = records.slice(start, start + train.batch_size).to_batch()
                rate = learning_rate_at(step, total, train.learning_rate, train.warmup_fraction)
                optimizer_step(alone, optimizer, batch, job, rate, 1, watch)
                step += 1
    for name, weights in alone.state_dict().items():
        assert torch.equal(weights, theirs.state_dict()[name]), name


def test_validation_is_what_scikit_learn_says_of_the_bundle(
    trained: TrainResult, bundle: Bundle, dataset: str, tmp_path: Path
) -> None:
    table = _score(trained.bundle, dataset, tmp_path, evaluation=True, logits=True, split="val")
    truth = bundle.task.targets(table["truth"], pa.array(bundle.classes))
    logits = _vectors(table, "logits")
    found = trained.metrics
    assert (found["rows"], found["rows_rejected"]) == (60, 0)
    assert found["mean_average_precision"] == pytest.approx(
        multilabel.mean_average_precision(truth, logits), abs=0.02
    )
    sums = multilabel.from_outcomes(multilabel.outcomes(truth, logits >= 0))
    assert {name: found[name] for name in sums} == pytest.approx(sums)
    loss = bundle.task.losses(torch.from_numpy(logits), torch.from_numpy(truth)).mean().item()
    assert found["loss"] == pytest.approx(loss, rel=1e-4)


def test_evaluation_beats_the_prior_and_draws_its_page(
    trained: TrainResult, dataset: str, tmp_path: Path
) -> None:
    found = api.evaluate(trained.bundle, dataset, str(tmp_path), num_workers=1)
    assert found["task"] == "multilabel" and found["rows"] == 60
    assert found["mean_average_precision"] > 1.8 * found["prior"]["mean_average_precision"]
    assert set(found["per_subset"]) == {"caption", "tabular", "caption+tabular"}
    assert found["best_single"] == "caption"
    page = (tmp_path / "report.html").read_text()
    self_contained(page)
    assert "Mean average precision" in page and "Confusion" not in page
    for refused in (api.explain, api.compare):
        with pytest.raises(UsageError, match="for models of one class a record"):
            refused(trained.bundle, dataset, str(tmp_path / "no"))


def test_calibration_is_the_same_from_any_number_of_ranks(bundle: Bundle, dataset: str) -> None:
    alone, two = (calibrated_by_ranks(bundle, dataset, "val", num_workers) for num_workers in (1, 2))
    assert alone == two
    assert bundle.calibration is not None
    assert NOTHING in bundle.calibration.subsets and bundle.calibration.cutoffs == ()
    assert len(bundle.calibration.class_thresholds) == 4
    whole = bundle.calibration.whole
    assert whole.rows == 60 and whole.log_loss_after <= whole.log_loss_before + 1e-6


def test_scores_are_label_sets_and_verify(
    trained: TrainResult, bundle: Bundle, dataset: str, tmp_path: Path
) -> None:
    table = _score(trained.bundle, dataset, tmp_path, probabilities=True, logits=True, contributions=True)
    assert table.column_names[:3] == ["id", "labels", "probability"] and table.num_rows == 300
    probabilities = _vectors(table, "probabilities")
    assert np.allclose(table["probability"].to_numpy(), probabilities.max(axis=1))
    whole = np.array([len(m) == 2 for m in table["modalities"].to_pylist()])
    assert bundle.calibration is not None
    heat = bundle.calibration.subsets["caption+tabular"].temperature
    pairs, _ = bundle.task.choices(_vectors(table, "logits")[whole], np.zeros((whole.sum(), 4)))
    assert np.allclose(softmax(pairs, heat)[:, 1].reshape(-1, 4), probabilities[whole], atol=1e-5)
    for names, p in zip(table["labels"].to_pylist(), probabilities, strict=True):
        said = [c for c in np.argsort(-p, kind="stable") if p[c] >= bundle.class_thresholds[c]]
        assert names == [bundle.classes[c] for c in said]
    with pytest.raises(UsageError, match="each class has a threshold"):
        prepare(trained.bundle, [dataset], str(tmp_path / "a"), ScoreSettings(abstain_below=0.5))
    with pytest.raises(UsageError, match="each class has a threshold"):
        prepare(trained.bundle, [dataset], str(tmp_path / "a"), ScoreSettings(target_precision=0.9))


def test_predictions_that_contradict_themselves_are_refused(
    trained: TrainResult, bundle: Bundle, dataset: str, tmp_path: Path
) -> None:
    table = _score(trained.bundle, dataset, tmp_path, evaluation=True, split="test")
    found = evaluate_label_sets(table, bundle.classes, bundle.class_thresholds)
    assert all(mistake.truth != mistake.label for mistake in found.worst)
    with pytest.raises(DataError, match="that reach their thresholds"):
        evaluate_label_sets(table, bundle.classes, np.full(4, 0.999))
    with pytest.raises(DataError, match="that the model was not trained on: 'rare'"):
        evaluate_label_sets(table, ["fruit", "metal", "unknown", "water"], bundle.class_thresholds)


def test_the_learning_rate_can_be_swept(dataset: str) -> None:
    settings = TrainSettings.model_validate(TRAIN | {"loss": "class_balanced", "class_weights": "none"})
    found = find_learning_rate(
        dataset,
        fields={},
        model=MODEL,
        train=settings,
        pipeline=PIPELINE,
        num_steps=20,
        lowest=1e-4,
        highest=0.1,
    )
    assert len(found.losses) == 20 and found.losses[-1] < found.losses[0]


@pytest.mark.slow
def test_settings_can_be_searched_and_the_best_ones_trained_anew(
    ray_session: None, dataset: str, tmp_path: Path
) -> None:
    given = [f"train.{name}={value}" for name, value in TRAIN.items()]
    search = ["search.final=retrain", "search.max_concurrent=1", "search.scheduler=asha"]
    found = api.tune(dataset, str(tmp_path / "search"), set=[*given, *search], trials=3)
    assert found.summary["metric"] == "mean_average_precision"
    assert sum(found.summary["trials"].values()) == 3 and "failed" not in found.summary["trials"]
    retrained = load_bundle(str(tmp_path / "search" / "retrained" / "bundle"))
    best = load_bundle(found.bundle)
    assert best.fingerprint == retrained.fingerprint and best.task.name == "multilabel"
    again = best.metrics["val"]["mean_average_precision"]
    assert again == pytest.approx(found.best.metrics["mean_average_precision"], abs=1e-6)
    test = json.loads((tmp_path / "search" / "test.json").read_text())
    assert test["rows"] == 60 and test["bundle"] == best.fingerprint


def test_datasets_of_the_other_kind_and_figures_that_it_lacks_are_refused(
    trained: TrainResult, tiny_dataset: str, dataset: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="is multiclass, but the model was trained on a multilabel dataset"):
        api.evaluate(trained.bundle, tiny_dataset, str(tmp_path))
    with pytest.raises(DataError, match="is multiclass, but"):
        api.calibrate(trained.bundle, tiny_dataset)
    for task, monitor in (("multilabel", "accuracy"), ("multiclass", "micro_f1")):
        with pytest.raises(UsageError, match=rf"train\.monitor={monitor}: the dataset is {task}"):
            TrainSettings(monitor=monitor).for_task(task)


def _score(bundle: str, dataset: str, output: Path, **settings: Any) -> pa.Table:
    score_here(bundle, [dataset], output, **settings)
    return ledger.read_predictions(str(output))


def _vectors(table: pa.Table, name: str) -> Any:
    return np.array(table[name].to_pylist(), dtype=np.float32)
