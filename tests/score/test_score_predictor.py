"""The predictor: batch sizes that find themselves, running out of memory without losing a row, and precision."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from tests.score.bundles import tiny_bundle, train_records
from xmodal_dist.batch import Batch, Tensors
from xmodal_dist.bundle import Bundle, save_bundle
from xmodal_dist.pipeline.decode import decode_table
from xmodal_dist.score.commit import part_path
from xmodal_dist.score.decoder import records_of
from xmodal_dist.score.job import prepare
from xmodal_dist.score.predictor import BatchSize, Predicted, Predictor
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.worker import UnitScorer

CPU = torch.device("cpu")


class _Tight(nn.Module):
    """An encoder on a device that holds a few rows, and no row with a value above a limit."""

    def __init__(self, inner: nn.Module, rows: int, error: Exception, limit: float = float("inf")) -> None:
        super().__init__()
        self.inner, self.rows, self.error, self.limit = inner, rows, error, limit
        self.largest = self.calls = 0

    def forward(self, tensors: Tensors) -> torch.Tensor:
        self.calls += 1
        values = next(iter(tensors.values()))
        if len(values) > self.rows or values.float().max() > self.limit:
            raise self.error
        self.largest = max(self.largest, len(values))
        features: torch.Tensor = self.inner(tensors)
        return features


@pytest.fixture
def bundle(tiny_dataset: str) -> Bundle:
    return tiny_bundle(tiny_dataset)


@pytest.fixture(scope="module")
def records(tiny_dataset: str) -> pa.Table:
    return train_records(tiny_dataset)


def _tighten(bundle: Bundle, tight: type[_Tight], *arguments: object) -> _Tight:
    encoders = bundle.model._encoders
    encoders[0] = tight(encoders[0], *arguments)
    return encoders[0]


def _predict(bundle: Bundle, records: pa.Table, **settings: object) -> tuple[Predictor, Predicted]:
    predictor = Predictor(bundle, CPU, ScoreSettings.model_validate(settings))
    return predictor, predictor.predict(_staged(predictor, records))


def _staged(predictor: Predictor, records: pa.Table) -> Batch:
    decoded = decode_table(records, predictor.bundle.specs, None)
    assert not decoded.errors
    return predictor.stage(records_of(decoded.fields, decoded.present))


# --- batch sizes -----------------------------------------------------------------------------------------------------


def _settle(size: BatchSize, seconds_of: dict[int, float]) -> list[int]:
    tried = []
    while not size.settled:
        tried.append(size.rows)
        size.note(size.rows, seconds_of[size.rows])
        size.note(size.rows - 1, 1e-9)  # a rest of a unit says nothing
    return tried


def test_the_batch_grows_while_the_rate_does_and_then_falls_back() -> None:
    size = BatchSize(None, 1024)
    tried = _settle(size, {16: 1.0, 32: 1.5, 64: 2.0, 128: 3.7})
    assert tried == [16] * 5 + [32] * 5 + [64] * 5 + [128] * 5
    assert size.rows == 64, "128 gains less than 10 %"


@given(most=st.integers(1, 3000), seconds=st.lists(st.floats(0, 10), min_size=12, max_size=12))
def test_any_times_settle_within_the_limit(most: int, seconds: list[float]) -> None:
    size = BatchSize(None, most)
    while not size.settled:
        size.note(size.rows, seconds[size.rows.bit_length() % 12])
    assert 1 <= size.rows <= most


def test_a_given_batch_size_stays_until_memory_ends() -> None:
    size = BatchSize(5, 1024)
    size.note(5, 0.1)
    assert (size.rows, size.settled) == (5, True)
    sizes = []
    for _ in range(4):
        size.halve()
        sizes.append(size.rows)
    assert sizes == [2, 1, 1, 1]


def test_reading_keeps_pace_with_the_batch(bundle: Bundle, records: pa.Table) -> None:
    assert Predictor(bundle, CPU, ScoreSettings(batch_rows=7)).read_rows == 7
    predictor = Predictor(bundle, CPU, ScoreSettings())
    tight = _tighten(bundle, _Tight, 10**6, MemoryError())
    for _ in range(40):
        predictor.predict(_staged(predictor, records))
    assert predictor.read_rows >= max(64, tight.largest // 2)


# --- memory ----------------------------------------------------------------------------------------------------------

GPU_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


@pytest.mark.parametrize(
    ("rows", "error"), [(1, MemoryError()), (3, GPU_MEMORY), (20, CPU_MEMORY), (119, GPU_MEMORY)]
)
def test_running_out_of_memory_loses_no_row_and_doubles_none(
    bundle: Bundle, records: pa.Table, rows: int, error: Exception
) -> None:
    _, expected = _predict(bundle, records)
    tight = _tighten(bundle, _Tight, rows, error)
    predictor, found = _predict(bundle, records, batch_rows=128)
    assert found.rows.tolist() == list(range(120)) and not len(found.too_large)
    assert np.allclose(found.values["probabilities"], expected.values["probabilities"], atol=1e-6)
    for _ in range(6):
        tight.calls = 0
        predictor.predict(_staged(predictor, records))
    assert rows / 2 < tight.largest <= rows
    assert tight.calls == -(-120 // predictor._size.rows), "it has learned what fits"


def test_a_record_that_fits_in_no_memory_is_rejected_alone(
    bundle: Bundle, records: pa.Table, tmp_path: Path
) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(sink, "PNG")
    pictures = records.column("picture").to_pylist()
    pictures[37] = pictures[90] = sink.getvalue()
    column = records.column_names.index("picture")
    pq.write_table(records.set_column(column, "picture", pa.array(pictures)), tmp_path / "in.parquet")
    save_bundle(str(tmp_path / "bundle"), bundle)
    run = prepare(
        str(tmp_path / "bundle"), [str(tmp_path / "in.parquet")], str(tmp_path / "out"), ScoreSettings()
    )
    fitted = bundle.specs[0].fitted.values
    white = min((1 - m) / s for m, s in zip(fitted["mean"], fitted["std"], strict=True))
    tight = _tighten(run.model, _Tight, 10**6, MemoryError(), white - 1e-3)
    predictor = Predictor(run.model, CPU, run.job.settings)
    scorer = UnitScorer(run.job, predictor)
    parts = [scorer.score(unit).part for unit in run.plan]
    assert [part.footer.reasons for part in parts] == [{"model_error": 2}]
    rejected = pq.read_table(next((tmp_path / "out" / "quarantine").glob("*.parquet"))).to_pylist()
    assert [(r["row"], r["id"]) for r in rejected] == [
        (row, records.column("id")[row].as_py()) for row in (37, 90)
    ]
    scored = pq.read_table(tmp_path / "out" / part_path(0)).column("id").to_pylist()
    assert scored == [x for i, x in enumerate(records.column("id").to_pylist()) if i not in (37, 90)]
    assert tight.largest > 8 and predictor._size.rows >= 16, "others need not go alone because of it"


def test_other_errors_of_the_model_are_not_swallowed(bundle: Bundle, records: pa.Table) -> None:
    _tighten(bundle, _Tight, 1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        _predict(bundle, records)


# --- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [1, 7, 120])
def test_a_row_does_not_depend_on_its_batch(bundle: Bundle, records: pa.Table, batch_rows: int) -> None:
    asked = {"logits": True, "embedding": True, "embeddings": True, "evaluation": True}
    _, expected = _predict(bundle, records, **asked)
    _, found = _predict(bundle, records, batch_rows=batch_rows, **asked)
    assert set(found.values) == {"probabilities", "logits", "embedding", "features"} | {
        name for name in found.values if name.startswith("subset:")
    }
    for name, values in expected.values.items():
        assert np.allclose(found.values[name], values, atol=2e-5), name


def test_bfloat16_changes_probabilities_a_little(bundle: Bundle, records: pa.Table) -> None:
    _, exact = _predict(bundle, records, precision="float32")
    _, found = _predict(bundle, records, precision="bfloat16")
    difference = np.abs(found.values["probabilities"] - exact.values["probabilities"])
    assert found.values["probabilities"].dtype == np.float32
    assert 0 < difference.max() < 0.05


def test_a_cpu_computes_in_float32_unless_told_otherwise(bundle: Bundle, records: pa.Table) -> None:
    _, auto = _predict(bundle, records)
    _, exact = _predict(bundle, records, precision="float32", compile="never")
    assert np.array_equal(auto.values["probabilities"], exact.values["probabilities"])


def test_warming_up_needs_no_data(bundle: Bundle, records: pa.Table) -> None:
    predictor = Predictor(bundle, CPU, ScoreSettings())
    predictor.warm_up()
    _, expected = _predict(bundle, records)
    found = predictor.predict(_staged(predictor, records))
    assert np.array_equal(found.values["probabilities"], expected.values["probabilities"])
