"""What a model is worth."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from xmodal_dist import environment, runtime, storage
from xmodal_dist.api.files import write_json, write_parquet
from xmodal_dist.api.reports import DETAILS_NAME, EVALUATIONS, METRICS_NAME, PAGE_NAME, is_run, write_run_page
from xmodal_dist.bundle import Bundle, load_bundle, save_bundle, save_calibration
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import UsageError
from xmodal_dist.evaluate import Evaluation, evaluate_label_sets, evaluate_predictions
from xmodal_dist.explain import job as explaining
from xmodal_dist.report import evaluation as evaluation_page
from xmodal_dist.report import examples
from xmodal_dist.report import explanation as explanation_page
from xmodal_dist.score import job as scoring
from xmodal_dist.score.ledger import read_predictions
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.task import MULTILABEL
from xmodal_dist.train.calibration import calibrate_on

__all__ = ["calibrate", "evaluate", "evaluation_path", "explain", "predict_split", "run_page"]

_NUM_WORST = 20
_TARGET_PRECISIONS = (0.9, 0.95, 0.98, 0.99)


def evaluate(
    bundle: str, data: str, output: str | None = None, *, split: str = "test", num_workers: int | None = None
) -> dict[str, Any]:
    """Evaluate a bundle on a split of a dataset and return the content of ``metrics.json``.

    Args:
        bundle: the trained model.
        data: the dataset.
        output: directory to write: metrics.json, predictions.parquet, report.html and report.json, what the page is
            made of besides the metrics. None takes the run's ``evaluation/SPLIT``, where the run's page finds it. That
            page is written anew.
        split: which split.
        num_workers: scoring workers; None takes one per GPU, or what the CPUs allow.
    """
    found, began_s = environment.capture(), time.monotonic()
    bundle, data = storage.absolute(bundle), storage.absolute(data)
    output = storage.absolute(output or evaluation_path(bundle, split))
    manifest = load_manifest(data)
    manifest.split_shards(split)
    model = load_bundle(bundle)
    model.require_task(manifest.task, data)
    # Of each bundle by itself: one that was calibrated anew, or a search's next best, is another.
    scored = storage.join(output, "scoring", model.fingerprint[:12])
    predictions = predict_split(
        bundle, data, scored, split, num_workers, logits=model.calibration is not None
    )
    outcome = _evaluated(model, predictions)
    details = {
        **{"split": split, "bundle": bundle, "dataset": data, "fingerprint": model.fingerprint},
        "dataset_fingerprint": manifest.fingerprint,
        "environment": found,
        "wall_s": round(time.monotonic() - began_s, 3),
        "curves": outcome.curves,
        "worst": [dataclasses.asdict(e) for e in examples.find(data, manifest, split, outcome.worst)],
    }
    write_parquet(storage.join(output, "predictions.parquet"), predictions)
    write_json(storage.join(output, METRICS_NAME), outcome.metrics)
    write_json(storage.join(output, DETAILS_NAME), details)
    page = evaluation_page.render(outcome.metrics, details)
    storage.write_bytes(storage.join(output, PAGE_NAME), page.encode())
    if is_run(run := _run_of(bundle)):
        write_run_page(run)
    return outcome.metrics


def _evaluated(model: Bundle, predictions: pa.Table) -> Evaluation:
    if model.task is MULTILABEL:
        return evaluate_label_sets(predictions, model.classes, model.class_thresholds, _NUM_WORST)
    thresholds = model.calibration.thresholds(_TARGET_PRECISIONS) if model.calibration else None
    return evaluate_predictions(predictions, model.classes, _NUM_WORST, thresholds)


def predict_split(
    bundle: str, data: str, output: str, split: str, num_workers: int | None = None, *, logits: bool = False
) -> pa.Table:
    """What a bundle says of the records of a split, also with every subset of the fields; scored on Ray."""
    settings = ScoreSettings(evaluation=True, split=split, logits=logits)
    with runtime.connect():
        scored = scoring.score(bundle, [data], output, settings, num_workers=num_workers)
    return read_predictions(scored.output)


def evaluation_path(bundle: str, split: str) -> str:
    """Where the evaluation of a bundle is written if nobody says: beside the bundle, in its run."""
    return storage.join(_run_of(bundle), EVALUATIONS, split)


def run_page(bundle: str) -> str | None:
    """The page of the run that a bundle lies in; None if it lies in no run."""
    run = _run_of(storage.absolute(bundle))
    return storage.join(run, PAGE_NAME) if is_run(run) else None


def _run_of(bundle: str) -> str:
    """The folder that the bundle lies in."""
    return bundle.rstrip("/").rpartition("/")[0] or "."


def calibrate(bundle: str, data: str, *, split: str = "val", output: str | None = None) -> dict[str, Any]:
    """Fit a bundle's temperatures and abstention thresholds, which training did where it had a validation split.

    Args:
        bundle: the trained model.
        data: a dataset with its fields and classes.
        split: of records that the model was not trained on.
        output: where to write the calibrated bundle; None changes ``bundle``. Its fingerprint is a new one either way.

    Returns:
        ``bundle`` (path), ``fingerprint``, and the content of its ``calibration.json``.
    """
    bundle, data = storage.absolute(bundle), storage.absolute(data)
    target = bundle if output is None else storage.absolute(output)
    if target != bundle and storage.exists(target) and storage.list_files(target):
        raise UsageError(f"{target!r} already holds files; choose an empty or new directory for --output")
    manifest = load_manifest(data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_bundle(bundle, device)
    found = calibrate_on(model, device, data, manifest, split)
    if target == bundle:
        fingerprint = save_calibration(bundle, found)
    else:
        fingerprint = save_bundle(target, dataclasses.replace(model, calibration=found))
    return {"bundle": target, "fingerprint": fingerprint, **found.to_json()}


def explain(
    bundle: str,
    data: str,
    output: str,
    *,
    split: str = "test",
    rows: int = 24,
    ids: Sequence[str] = (),
    max_rows: int = 2000,
) -> dict[str, Any]:
    """Explain a bundle's predictions of a split and return the content of ``explanation.json``.

    Args:
        bundle: the trained model.
        data: the dataset.
        output: directory to write: explanation.json, explanations.parquet, report.html.
        split: which split.
        rows: records to look at closely: the most confident errors, then some right ones.
        ids: look at these records instead.
        max_rows: most records that contributions and importances are taken over; drawn evenly, always the same.
    """
    bundle, data, output = (storage.absolute(p) for p in (bundle, data, output))
    found = explaining.explain(bundle, data, split, rows, ids, max_rows)
    shown = examples.find(data, load_manifest(data), split, found.shown)
    header = {"bundle": bundle, "dataset": data, "split": split}
    page = explanation_page.render(found.content, shown, found.views, header)
    write_parquet(storage.join(output, "explanations.parquet"), found.table)
    write_json(storage.join(output, "explanation.json"), found.content)
    storage.write_bytes(storage.join(output, "report.html"), page.encode())
    return found.content
