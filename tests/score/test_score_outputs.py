"""The columns of a scoring output: which there are, what they say, and that other readers read them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.score.bundles import save_tiny_bundle
from tests.score.runs import score_here
from xmodal_dist.bundle import Bundle, save_calibration
from xmodal_dist.calibrate import Calibration, Cutoff, SubsetFit, softmax
from xmodal_dist.errors import UsageError
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.score import ledger
from xmodal_dist.score.job import prepare
from xmodal_dist.score.outputs import PROBABILITIES, prediction_columns
from xmodal_dist.score.settings import ScoreSettings

FIELDS = ["picture", "caption", "weather"]
EVERYTHING = {
    "top_k": 2,
    "probabilities": True,
    "logits": True,
    "embedding": True,
    "embeddings": True,
    "contributions": True,
    "abstain_below": 0.4,
}


@pytest.fixture(scope="module")
def bundle(tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_bundle(tiny_dataset, tmp_path_factory.mktemp("bundle"), fusion="gated")


def _run(bundle: str, dataset: str, output: Path, **settings: Any) -> pa.Table:
    manifest = score_here(bundle, [dataset], output, **settings)
    assert sum(manifest.label_counts.values()) == manifest.rows_ok
    return ledger.read_predictions(str(output))


@pytest.fixture(scope="module")
def output(bundle: str, tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every output."""
    folder = tmp_path_factory.mktemp("output")
    _run(bundle, tiny_dataset, folder, **EVERYTHING)
    return folder


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        ({}, ["id", "label", "probability", "top_k", "modalities"]),
        ({"top_k": 0, "modalities": False}, ["id", "label", "probability"]),
        ({"top_k": 0, "logits": True}, ["id", "label", "probability", "modalities", "logits"]),
        (
            {"top_k": 0, "modalities": False, "embedding": True, "abstain_below": 0.5},
            ["id", "label", "probability", "abstained", "embedding"],
        ),
        (
            {"top_k": 0, "modalities": False, "embeddings": True},
            ["id", "label", "probability", *(f"embedding:{name}" for name in FIELDS)],
        ),
        (
            {"top_k": 0, "modalities": False, "contributions": True},
            ["id", "label", "probability", "contributions"],
        ),
    ],
)
def test_settings_choose_the_columns(
    bundle: str, tiny_dataset: str, tmp_path: Path, settings: dict[str, Any], columns: list[str]
) -> None:
    table = _run(bundle, tiny_dataset, tmp_path, split="test", **settings)
    assert table.column_names == columns
    assert settings.items() <= ScoreSettings.model_validate(settings).identity().items()


def test_vectors_agree_with_each_other_and_with_what_is_missing(output: Path) -> None:
    table = ledger.read_predictions(str(output))
    logits, probabilities = (np.array(table.column(c).to_pylist()) for c in ("logits", "probabilities"))
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert np.allclose(softmax / softmax.sum(axis=1, keepdims=True), probabilities, atol=1e-6)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 16)
    assert np.ptp(np.array(table.column("embedding").to_pylist()), axis=0).min() > 1e-3
    modalities = table.column("modalities").to_pylist()
    for name in FIELDS:
        column = table.column(f"embedding:{name}")
        assert column.type == pa.list_(pa.float32(), 16)
        assert [v is not None for v in column.to_pylist()] == [name in names for names in modalities]
        assert 0 < column.null_count < 150 or name == "weather"


def test_contributions_add_up_and_are_null_where_a_field_is_missing(output: Path) -> None:
    rows = ledger.read_predictions(str(output)).to_pylist()
    assert pq.read_schema(next((output / "data").glob("*.parquet"))).field("contributions").type == pa.struct(
        [(name, pa.float32()) for name in FIELDS]
    )
    left: dict[str, list[float]] = {}
    for row in rows:
        given = row["contributions"]
        assert [name for name in FIELDS if given[name] is not None] == row["modalities"]
        best = row["top_k"][0]
        left.setdefault(best["label"], []).append(best["probability"] - sum(v or 0.0 for v in given.values()))
    for baselines in left.values():  # what is left is the class's probability with nothing shown
        assert np.ptp(baselines) < 1e-5 and 0 < np.mean(baselines) < 1


def test_an_unsure_record_has_no_label_but_says_what_it_might_be(output: Path) -> None:
    table = ledger.read_predictions(str(output))
    unsure = [row for row in table.to_pylist() if row["abstained"]]
    assert 0 < len(unsure) < table.num_rows
    for row in table.to_pylist():
        best = row["top_k"][0]
        assert row["abstained"] == (row["probability"] < 0.4) and row["probability"] == best["probability"]
        assert row["label"] == (None if row["abstained"] else best["label"])
    manifest = ledger.load_manifest(str(output))
    assert manifest is not None and manifest.label_counts["(abstained)"] == len(unsure)


@pytest.fixture(scope="module")
def calibrated(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundle with a temperature of 0.8 whatever is there, and 0.4 as the threshold for a precision of 0.9."""
    copy = tmp_path_factory.mktemp("calibrated") / "bundle"
    shutil.copytree(bundle, copy)
    fit = SubsetFit(0.8, 100, 0.2, 0.1, 0.9, 0.8)
    found = (Cutoff(0.2, 100, 60), Cutoff(0.4, 50, 49), Cutoff(0.9, 20, 20))
    save_calibration(str(copy), Calibration({"picture": fit}, 0.8, fit, found, "d", "val"))
    return str(copy)


def test_probabilities_are_calibrated_and_logits_are_not(
    bundle: str, calibrated: str, tiny_dataset: str, tmp_path: Path
) -> None:
    asked = {"split": "test", "logits": True, "probabilities": True}
    plain = _run(bundle, tiny_dataset, tmp_path / "a", **asked)
    found = _run(calibrated, tiny_dataset, tmp_path / "b", **asked)
    assert found.column("logits") == plain.column("logits") and found.column("label") == plain.column("label")
    logits = np.array(found.column("logits").to_pylist())
    assert np.allclose(np.array(found.column("probabilities").to_pylist()), softmax(logits, 0.8), atol=1e-5)


def test_a_target_precision_takes_the_threshold_of_the_calibration(
    calibrated: str, tiny_dataset: str, tmp_path: Path
) -> None:
    table = _run(calibrated, tiny_dataset, tmp_path / "out", target_precision=0.9)
    unsure = [row["abstained"] for row in table.to_pylist()]
    assert 0 < sum(unsure) < len(unsure)
    assert unsure == [row["probability"] < 0.4 for row in table.to_pylist()]
    assert unsure == [row["label"] is None for row in table.to_pylist()]
    settings = ScoreSettings(target_precision=0.9)
    run = prepare(calibrated, [tiny_dataset], str(tmp_path / "out"), settings)
    assert run.identity.settings["target_precision"] == 0.9, "it says which run this is"


def test_a_target_precision_that_cannot_be_kept_is_refused(
    bundle: str, calibrated: str, tiny_dataset: str
) -> None:
    for path, settings, message in (
        (calibrated, {"target_precision": 0.98}, r"0\.98 is out of reach: of the 100 records of 'val'"),
        (calibrated, {"target_precision": 0.9, "abstain_below": 0.5}, "give one of the two"),
        (calibrated, {"target_precision": 0.9, "evaluation": True}, "evaluation needs all of them"),
        (bundle, {"target_precision": 0.9}, "needs a calibrated bundle.*xmodal calibrate"),
    ):
        with pytest.raises(UsageError, match=message):
            prepare(path, [tiny_dataset], "out", ScoreSettings.model_validate(settings))


def test_evaluation_refuses_to_abstain(bundle: str, tiny_dataset: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"score\.abstain_below .*leaves records without a label"):
        prepare(bundle, [tiny_dataset], "out", ScoreSettings(evaluation=True, abstain_below=0.5))


@hypothesis_settings(deadline=None)
@given(
    num_classes=st.integers(1, 60),
    top_k=st.integers(1, 70),
    levels=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_the_top_classes_are_in_order_and_ties_in_the_order_of_the_classes(
    num_classes: int, top_k: int, levels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.integers(0, levels, (5, num_classes)) / levels).astype(np.float32)
    classes = tuple(f"c{i:02d}" for i in range(num_classes))
    named = Bundle((), classes, ModelSettings(), None, {}, {})  # type: ignore[arg-type]
    settings = ScoreSettings(top_k=top_k, modalities=False)
    columns = prediction_columns(named, settings, {PROBABILITIES: values}, np.zeros((5, 0), dtype=bool))
    for row, found in zip(values, columns["top_k"].to_pylist(), strict=True):
        expected = sorted(zip(-row, classes, strict=True))[:top_k]
        assert [(-pair["probability"], pair["label"]) for pair in found] == expected
    assert columns["label"].to_pylist() == [found[0]["label"] for found in columns["top_k"].to_pylist()]


# --- other readers ---------------------------------------------------------------------------------------------------


def test_pandas_reads_the_parts(output: Path) -> None:
    import pandas as pd

    table = ledger.read_predictions(str(output))
    frame = pd.concat(
        [pd.read_parquet(p) for p in sorted((output / "data").glob("*.parquet"))], ignore_index=True
    )
    assert list(frame.columns) == table.column_names and len(frame) == table.num_rows
    assert np.allclose(np.stack(frame["embedding"]), np.array(table.column("embedding").to_pylist()))
    assert frame["embedding:picture"].isna().sum() == table.column("embedding:picture").null_count
    assert frame["label"].isna().sum() == frame["abstained"].sum()


def test_a_plain_parquet_reader_reads_the_parts_as_one_table(output: Path) -> None:
    table = pq.read_table(output / "data")
    assert table.num_rows == 150
    assert table.column("embedding:caption").null_count > 0
    assert len(table.column("embedding:caption").drop_null()[0].as_py()) == 16


def test_duckdb_reads_the_parts(output: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    table = ledger.read_predictions(str(output))
    parts = str(output / "data" / "*.parquet")
    query = """
        select count(*), count(label), sum(abstained::int), count("embedding:picture"), min(len(embedding)),
               max(abs(list_sum(probabilities) - 1)), sum(len(modalities)), min(top_k[1].probability - probability)
        from read_parquet(?)
    """
    found = duckdb.execute(query, [parts]).fetchone()
    assert found is not None
    modalities = sum(map(len, table.column("modalities").to_pylist()))
    unsure = sum(table.column("abstained").to_pylist())
    pictures = 150 - table.column("embedding:picture").null_count
    assert found[:5] == (150, 150 - unsure, unsure, pictures, 16)
    assert found[5] < 1e-5 and found[6:] == (modalities, 0)
