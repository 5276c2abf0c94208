"""What only a GPU shows: training and scoring there through Ray, real shortage of memory, precision and compilation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.score.bundles import save_tiny_bundle, tiny_bundle, train_records
from tests.score.runs import score_here
from xmodal_dist.batch import Records, Tensors
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.decode import decode_table
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.score import ledger
from xmodal_dist.score.decoder import records_of
from xmodal_dist.score.job import score
from xmodal_dist.score.predictor import Predictor
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.verify import verify_scoring
from xmodal_dist.train.launch import launch
from xmodal_dist.train.settings import TrainSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
BFLOAT16_GAP = 0.02
FLOAT32_GAP = 0.002  # convolutions round to tf32


@pytest.fixture(scope="module")
def on_cpu(tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Probabilities by id, computed on the CPU."""
    folder = tmp_path_factory.mktemp("cpu")
    score_here(
        save_tiny_bundle(tiny_dataset, folder / "bundle"), [tiny_dataset], folder / "out", probabilities=True
    )
    return _probabilities(str(folder / "out"))


def _probabilities(output: str) -> dict[str, list[float]]:
    table = ledger.read_predictions(output)
    return dict(zip(table["id"].to_pylist(), table["probabilities"].to_pylist(), strict=True))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("placement", ["local", "ray"])
@pytest.mark.parametrize(("precision", "gap"), [("float32", FLOAT32_GAP), ("auto", BFLOAT16_GAP)])
def test_scoring_on_a_gpu_says_what_the_cpu_says(
    placement: Literal["local", "ray"],
    precision: Literal["float32", "auto"],
    gap: float,
    on_cpu: dict[str, list[float]],
    tiny_dataset: str,
    tmp_path: Path,
) -> None:
    bundle, output = save_tiny_bundle(tiny_dataset, tmp_path / "bundle"), str(tmp_path / "out")
    settings = ScoreSettings(probabilities=True, placement=placement, precision=precision, unit_rows=16)
    done = score(bundle, [tiny_dataset], output, settings)
    assert done.manifest.rows_ok == done.rows_scored_now == len(on_cpu)
    assert verify_scoring(output) == (0, 0, [])
    found = _probabilities(output)
    assert found.keys() == on_cpu.keys()
    assert max(np.abs(np.subtract(found[i], on_cpu[i])).max() for i in found) <= gap


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("placement", ["local", "ray"])
def test_training_on_a_gpu_learns(
    placement: Literal["local", "ray"], tiny_dataset: str, tmp_path: Path
) -> None:
    settings = {"epochs": 8, "batch_size": 12, "lanes": 6, "log_every_steps": 1, "num_workers": 1}
    done = launch(
        tiny_dataset,
        str(tmp_path / "run"),
        fields={},
        model=ModelSettings(width=16),
        train=TrainSettings.model_validate(settings),
        pipeline=PipelineSettings(window_rows=8, placement=placement),
        resume=False,
    )
    assert done.metrics["accuracy"] > 0.8


class _Hungry(torch.nn.Module):
    """An encoder that takes a lot of the GPU's memory for each row."""

    def __init__(self, inner: torch.nn.Module, row_bytes: int) -> None:
        super().__init__()
        self.inner, self.row_bytes, self.largest = inner, row_bytes, 0

    def forward(self, tensors: Tensors) -> torch.Tensor:
        rows = len(next(iter(tensors.values())))
        torch.empty(rows * self.row_bytes, dtype=torch.uint8, device=GPU)
        self.largest = max(self.largest, rows)
        features: torch.Tensor = self.inner(tensors)
        return features


def _records(dataset: str, predictor: Predictor) -> Records:
    decoded = decode_table(train_records(dataset), predictor.bundle.specs, None)
    return records_of(decoded.fields, decoded.present)


def _predictor(dataset: str, **settings: Any) -> Predictor:
    bundle = tiny_bundle(dataset)
    bundle.model.to(GPU)
    return Predictor(bundle, GPU, ScoreSettings.model_validate(settings))


def _predict(predictor: Predictor, records: Records) -> NDArray[np.float32]:
    found = predictor.predict(predictor.stage(records))
    assert found.rows.tolist() == list(range(len(records))), "no row is lost"
    return found.values["probabilities"]


def test_a_full_gpu_loses_no_row(tiny_dataset: str) -> None:
    plain = _predictor(tiny_dataset, precision="float32", compile="never")
    expected = _predict(plain, _records(tiny_dataset, plain))
    predictor = _predictor(tiny_dataset, batch_rows=64, precision="float32", compile="never")
    encoders = predictor.bundle.model._encoders
    total_bytes = torch.cuda.mem_get_info()[1]
    hungry = _Hungry(encoders[0], total_bytes // 20)  # 20 rows fill it
    encoders[0] = hungry
    assert np.abs(_predict(predictor, _records(tiny_dataset, predictor)) - expected).max() <= FLOAT32_GAP
    assert 8 <= hungry.largest < 20


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16"}, {"compile": "never"}])
def test_what_probing_chooses_says_the_same(
    settings: dict[str, str], tiny_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[Predictor.__module__], "_COMPILING_PAYS_S", 0.0)
    plain = _predictor(tiny_dataset, precision="float32", compile="never")
    records = _records(tiny_dataset, plain)
    expected = _predict(plain, records)
    predictor = _predictor(tiny_dataset, **settings)
    for _ in range(12):  # until the batch size has settled
        assert np.abs(_predict(predictor, records) - expected).max() <= BFLOAT16_GAP
