"""Calibration on a split: the same from any number of ranks, and only of what can be used."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.score.bundles import tiny_bundle
from tests.train.ranks import calibrated_by_ranks
from xmodal_dist.bundle import Bundle, subsets
from xmodal_dist.calibrate import NOTHING
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.train.calibration import calibrate_on

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundle(tiny_dataset: str) -> Bundle:
    return tiny_bundle(tiny_dataset)


def test_any_number_of_ranks_find_the_same_to_the_bit(bundle: Bundle, tiny_dataset: str) -> None:
    alone, two, four = (calibrated_by_ranks(bundle, tiny_dataset, "train", n) for n in (1, 2, 4))
    assert alone is not None and alone.whole.rows == 120
    assert two == alone == four


def test_one_process_finds_what_the_ranks_find(bundle: Bundle, tiny_dataset: str) -> None:
    manifest = load_manifest(tiny_dataset)
    found, other = (
        calibrate_on(bundle, CPU, tiny_dataset, manifest, "train"),
        calibrated_by_ranks(bundle, tiny_dataset, "train", 2),
    )
    assert other is not None and found.dataset == manifest.fingerprint and found.split == "train"
    assert set(found.subsets) == set(subsets(bundle.specs)) | {NOTHING} == set(other.subsets)
    for name, fit in found.subsets.items():
        assert fit == pytest.approx(other.subsets[name], abs=1e-3)
    missing = manifest.splits["train"].missing
    assert {name: found.subsets[name].rows for name in missing} == {n: 120 - m for n, m in missing.items()}
    assert found.whole.log_loss_after < found.whole.log_loss_before


def test_classes_may_come_in_another_order(bundle: Bundle, tiny_dataset: str) -> None:
    manifest = load_manifest(tiny_dataset)
    reordered = manifest.model_copy(update={"classes": manifest.classes[::-1]})
    expected = calibrate_on(bundle, CPU, tiny_dataset, manifest, "val")
    assert calibrate_on(bundle, CPU, tiny_dataset, reordered, "val").subsets == expected.subsets


def test_a_class_or_split_that_the_model_or_dataset_does_not_know_is_named(
    bundle: Bundle, tiny_dataset: str
) -> None:
    manifest = load_manifest(tiny_dataset)
    foreign = Bundle(bundle.specs, ("blue", "green", "mauve"), bundle.settings, bundle.model, {}, {})
    with pytest.raises(DataError, match=r"split 'val' has classes that the model was not trained on: 'red'"):
        calibrate_on(foreign, CPU, tiny_dataset, manifest, "val")
    with pytest.raises(UsageError, match="no split 'holdout'"):
        calibrate_on(bundle, CPU, tiny_dataset, manifest, "holdout")


def test_records_that_cannot_be_decoded_or_predicted_are_left_out(
    bundle: Bundle, tiny_dataset: str, tmp_path: Path
) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(tiny_dataset, copy)
    shard = sorted((copy / "data").glob("val-*"))[0]
    rows = pq.read_table(shard).to_pylist()
    row = next(r for r in rows if r["picture"] is not None)
    row["picture"] = row["picture"][:60]
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(shard)), shard, row_group_size=8)
    found = calibrate_on(bundle, CPU, str(copy), load_manifest(str(copy)), "val")
    assert found.whole.rows == 14 and np.isfinite(found.pooled)
