"""A model beside classical ones."""

from __future__ import annotations

import json
import posixpath
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xmodal_dist import storage
from xmodal_dist.api.evaluation import predict_split
from xmodal_dist.api.files import write_json, write_parquet
from xmodal_dist.baselines import compare as comparing
from xmodal_dist.bundle import Bundle, load_bundle
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import UsageError
from xmodal_dist.evaluate import subset_column
from xmodal_dist.pipeline.rows import one_chunk
from xmodal_dist.report import comparison as comparison_page
from xmodal_dist.task import MULTICLASS

__all__ = ["compare"]


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
    if model.task is not MULTICLASS:
        raise UsageError(
            f"compare is for models of one class a record, and {bundle} is {model.task.name}: the classical baselines "
            "are not built for label sets; xmodal evaluate shows the prior beside the model"
        )
    plan = comparing.plan(manifest, split, model.specs, fields, baselines, max_rows)
    predictions = predict_split(bundle, data, storage.join(output, "scoring"), split, num_workers)
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
    write_parquet(storage.join(output, "predictions.parquet"), predictions)
    write_json(storage.join(output, "comparison.json"), result)
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
