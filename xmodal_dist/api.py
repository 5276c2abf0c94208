"""The commands as Python functions, with the same names and arguments: each settles settings and joins the rooms."""

from __future__ import annotations

import io
import json
import posixpath
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xmodal_dist import config as configuration
from xmodal_dist import runtime, storage
from xmodal_dist.baselines import compare as comparing
from xmodal_dist.bundle import Bundle, check_files, load_bundle
from xmodal_dist.dataset.inspect import Inspection, inspect_dataset
from xmodal_dist.dataset.manifest import MANIFEST_NAME, Manifest, load_manifest
from xmodal_dist.dataset.schema import Field, parse_field
from xmodal_dist.dataset.verify import VerifyResult, verify_dataset
from xmodal_dist.doctor import Finding, examine
from xmodal_dist.errors import UsageError
from xmodal_dist.evaluate import Evaluation, evaluate_predictions, subset_column
from xmodal_dist.ingest import pack as packing
from xmodal_dist.pipeline.rows import one_chunk
from xmodal_dist.progress import ConsoleProgress
from xmodal_dist.report import comparison as comparison_page
from xmodal_dist.report import evaluation as evaluation_page
from xmodal_dist.report import examples
from xmodal_dist.report import scoring as scoring_page
from xmodal_dist.report import training as training_page
from xmodal_dist.score import job as scoring
from xmodal_dist.score.collect import Collected, collect_garbage
from xmodal_dist.score.events import read_events
from xmodal_dist.score.ledger import read_predictions
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.verify import verify_scoring
from xmodal_dist.train.launch import TrainResult, launch
from xmodal_dist.train.log import read_metrics

__all__ = ["compare", "doctor", "evaluate", "gc", "inspect", "pack", "retry", "score", "train", "verify"]

_NUM_WORST = 20


def pack(
    source: str,
    dataset: str,
    *,
    field: Sequence[str | Field] = (),
    label: str | None = None,
    id: str | None = None,
    split: str | None = None,
    split_ratio: tuple[float, float, float] | None = None,
    overwrite: bool = False,
    config: str | None = None,
    set: Sequence[str] = (),
) -> Manifest:
    """Pack raw records into a dataset.

    Args:
        source: CSV, JSONL or Parquet (file, glob, folder), or a folder of class folders.
        dataset: directory or URI to write.
        field: fields as ``NAME=KIND[:COLUMN,...]``; none infers all of them.
        label: column of the class.
        id: column of the record's id.
        split: column of the split.
        split_ratio: shares of train, val and test where no column says.
        overwrite: replace a dataset that is there.
        config: YAML file; its ``pack`` section counts here.
        set: overrides like ``pack.seed=1``.
    """
    if split is not None and split_ratio is not None:
        raise UsageError(
            "--split takes the splits from a column, --split-ratio makes them: give one of the two"
        )
    overrides = list(set)
    if split_ratio is not None:
        overrides.append(f"pack.split_ratio={list(split_ratio)}")
    fields = [parse_field(f) if isinstance(f, str) else f for f in field]
    settings = configuration.load(config, overrides).pack
    with ConsoleProgress("packing") as progress:
        return packing.pack(
            source,
            storage.absolute(dataset),
            fields=fields or None,
            label=label,
            id_column=id,
            split_column=split,
            settings=settings,
            overwrite=overwrite,
            progress=progress,
        )


def inspect(dataset: str) -> Inspection:
    """What is in a packed dataset, and what looks wrong."""
    return inspect_dataset(storage.absolute(dataset))


def train(
    data: str,
    output: str,
    *,
    config: str | None = None,
    set: Sequence[str] = (),
    num_workers: int | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a classifier on a packed dataset.

    Args:
        data: the dataset.
        output: run directory to write.
        config: YAML file of settings; none takes the defaults.
        set: overrides like ``train.epochs=20``.
        num_workers: DDP workers; None takes the settings'.
        resume: continue the run in ``output``.
    """
    run = storage.absolute(output)
    overrides = [*set, *([f"train.num_workers={num_workers}"] if num_workers is not None else [])]
    settings = configuration.load(config, overrides)
    with runtime.connect():
        result = launch(
            storage.absolute(data),
            run,
            fields=settings.fields,
            model=settings.model,
            train=settings.train,
            pipeline=settings.pipeline,
            resume=resume,
        )
    goodput = json.loads(storage.read_text(storage.join(run, "goodput.json")))
    page = training_page.render(run, read_metrics(run), goodput, None, settings.model_dump(mode="json"))
    storage.write_bytes(storage.join(run, "report.html"), page.encode())
    return result


def evaluate(
    bundle: str, data: str, output: str, *, split: str = "test", num_workers: int | None = None
) -> dict[str, Any]:
    """Evaluate a bundle on a split of a dataset and return the content of ``metrics.json``.

    Args:
        bundle: the trained model.
        data: the dataset.
        output: directory to write: metrics.json, predictions.parquet, report.html.
        split: which split.
        num_workers: scoring workers; None takes one per GPU, or what the CPUs allow.
    """
    bundle, data, output = (storage.absolute(p) for p in (bundle, data, output))
    manifest = load_manifest(data)
    manifest.split_shards(split)
    model = load_bundle(bundle)
    predictions = _predict_split(bundle, data, output, split, num_workers)
    outcome = evaluate_predictions(predictions, model.classes, _NUM_WORST)
    _write_parquet(storage.join(output, "predictions.parquet"), predictions)
    _write_json(storage.join(output, "metrics.json"), outcome.metrics)
    _write_evaluation_page(output, bundle, data, split, manifest, outcome)
    return outcome.metrics


def _predict_split(bundle: str, data: str, output: str, split: str, num_workers: int | None) -> pa.Table:
    """What the bundle says of a split, also with every subset of the fields."""
    settings = ScoreSettings(evaluation=True, split=split)
    with runtime.connect():
        scored = scoring.score(
            bundle, [data], storage.join(output, "scoring"), settings, num_workers=num_workers
        )
    return read_predictions(scored.output)


def _write_evaluation_page(
    output: str, bundle: str, data: str, split: str, manifest: Manifest, outcome: Evaluation
) -> None:
    shown = examples.find(data, manifest, split, outcome.worst)
    header = {"bundle": bundle, "dataset": data, "split": split}
    page = evaluation_page.render(outcome.metrics, shown, outcome.curves, header)
    storage.write_bytes(storage.join(output, "report.html"), page.encode())


def compare(
    bundle: str,
    data: str,
    output: str,
    *,
    split: str = "test",
    baselines: Sequence[str] = (),
    fields: Sequence[str] = (),
    max_rows: int = comparing.MAX_ROWS,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Compare a bundle with classical models on a split of its dataset; return the content of ``comparison.json``.

    Args:
        bundle: the trained model.
        data: the dataset that it was trained on; the classical models are fitted to its train split.
        output: directory to write: comparison.json, predictions.parquet, report.html.
        split: the rows to compare on.
        baselines: names of the classical models; none takes all.
        fields: names of the fields to compare with, for the network too; none takes all.
        max_rows: rows of the train and of the validation split for the classical models, drawn at random.
        num_workers: scoring workers; None takes one per GPU, or what the CPUs allow.
    """
    bundle, data, output = (storage.absolute(p) for p in (bundle, data, output))
    manifest, model = load_manifest(data), load_bundle(bundle)
    plan = comparing.plan(manifest, split, model.specs, fields, baselines, max_rows)
    predictions = _predict_split(bundle, data, output, split, num_workers)
    network = comparing.NetworkPredictions(
        ids=predictions.column("id").to_pylist(),
        by_fields={names: _predicted_classes(predictions, names, model) for names in plan.field_sets},
        fit_cpu_s=_training_cpu_s(bundle),
    )
    result, predictions = comparing.compare_with_baselines(
        data,
        manifest,
        plan,
        model.classes,
        network,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    _write_parquet(storage.join(output, "predictions.parquet"), predictions)
    _write_json(storage.join(output, "comparison.json"), result)
    page = comparison_page.render(result, {"bundle": bundle, "dataset": data, "split": split})
    storage.write_bytes(storage.join(output, "report.html"), page.encode())
    return result


def _predicted_classes(predictions: pa.Table, fields: Sequence[str], model: Bundle) -> NDArray[np.int64]:
    """[n] class index that the bundle gives with only these fields shown."""
    whole = len(fields) == len(model.specs)
    column = predictions.column("probabilities" if whole else subset_column(fields))
    probabilities = one_chunk(column).flatten().to_numpy(zero_copy_only=False)
    best: NDArray[np.int64] = probabilities.reshape(-1, len(model.classes)).argmax(axis=1)
    return best


def _training_cpu_s(bundle: str) -> float | None:
    """CPU-seconds that training took, where the bundle still lies in its run."""
    place = storage.join(posixpath.dirname(bundle), "goodput.json")
    if not storage.exists(place):
        return None
    goodput = json.loads(storage.read_text(place))
    return float(goodput["records"] * goodput["cpu_s_per_record"])


def score(
    bundle: str,
    input: Sequence[str],
    output: str,
    *,
    config: str | None = None,
    set: Sequence[str] = (),
    num_workers: int | None = None,
) -> scoring.ScoreResult:
    """Score Parquet records with a bundle; run again to continue a run that was stopped.

    Args:
        bundle: the trained model.
        input: Parquet files, globs, folders, or packed datasets.
        output: directory to write.
        config: YAML file; its ``score`` section counts here.
        set: overrides like ``score.top_k=5``.
        num_workers: scoring workers; None takes one per GPU, or what the CPUs allow.
    """
    output = storage.absolute(output)
    settings = configuration.load(config, set).score
    inputs = [storage.absolute(path) for path in input]
    result = scoring.score(bundle, inputs, output, settings, num_workers, session=runtime.connect)
    _report_scoring(result)
    return result


def retry(
    output: str,
    *,
    bundle: str | None = None,
    config: str | None = None,
    set: Sequence[str] = (),
    num_workers: int | None = None,
) -> scoring.ScoreResult:
    """Score the rejected records of a finished scoring run again, and add what comes out to its output.

    Args:
        output: directory of the run.
        bundle: the run's bundle, if it is not where it was.
        config: YAML file; of its ``score`` section only what does not change the output counts.
        set: overrides like ``score.threads=2``.
        num_workers: scoring workers; None takes one per GPU, or what the CPUs allow.
    """
    settings = configuration.load(config, set).score
    result = scoring.retry(bundle, output, settings, num_workers, session=runtime.connect)
    _report_scoring(result)
    return result


def gc(output: str) -> Collected:
    """Remove the files of a finished scoring run that its manifest does not name."""
    return collect_garbage(output)


def _report_scoring(result: scoring.ScoreResult) -> None:
    manifest = result.manifest.model_dump(mode="json")
    events = read_events(result.output)
    page = scoring_page.render(manifest, events=events, drift=result.drift, goodput=result.goodput)
    storage.write_bytes(storage.join(result.output, "report.html"), page.encode())


def verify(path: str, *, reread_input: bool = False) -> VerifyResult:
    """Check a dataset, a bundle or scoring output against its manifest, to the byte.

    Args:
        path: directory of any of them.
        reread_input: of scoring output, hash the ids of its input again.

    Raises:
        UsageError: it is none of them.
    """
    path = storage.absolute(path)
    if storage.exists(storage.join(path, MANIFEST_NAME)):
        return verify_dataset(path)
    if storage.exists(storage.join(path, "MANIFEST.json")):
        return VerifyResult(lost=0, duplicated=0, failed_checks=check_files(path))
    if storage.exists(storage.join(path, "_run.json")):
        return verify_scoring(path, reread_input=reread_input)
    raise UsageError(
        f"{path!r} is not a dataset (manifest.json), a bundle (MANIFEST.json) or scoring output (_run.json)"
    )


def doctor(path: str | None = None) -> list[Finding]:
    """Check this machine, Ray, and the storage at ``path``."""
    return list(examine(path))


def _write_parquet(path: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(path, sink.getvalue())


def _write_json(path: str, content: dict[str, Any]) -> None:
    storage.write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
