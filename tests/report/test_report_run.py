"""The one page of a run: evaluations in their order, resumed commands, settings to take away."""

from __future__ import annotations

import base64
import re

import numpy as np
import pyarrow as pa
import pytest

from tests.report.pages import well_formed
from xmodal_dist.evaluate import evaluate_predictions
from xmodal_dist.report.page import self_contained
from xmodal_dist.report.run import Run, render

CONFIG = "train:\n  note: </code><b>é\n"
MACHINE = {
    "started": "2030-01-02T03:04:05+00:00", "command": "xmodal train --data d", "host": "h", "system": "Linux",
    "cpu": "CPU", "cores": 1, "memory_bytes": 1 << 33, "accelerators": ["H100"], "python": "3.11",
    "cluster": {"nodes": 2, "cpus": 8.0, "gpus": 1.0}, "packages": {"torch": "2.13"}, "git": None,
    "dataset": "data/d", "dataset_seed": 7,
}  # fmt: skip
IDENTITY = {"dataset": "0123456789abcdef", "fields": {"image": {}, "text": {}}, "train": {"seed": 5}}
LINES = [
    {"event": "start", "workers": [{"rank": 0, "host": "one"}, {"rank": 1, "host": "two"}]},
    {"event": "step", "step": 1, "loss": 1.0, "learning_rate": 0.1, "records_per_s": 9.0},
    {
        "event": "epoch",
        "epoch": 0,
        "step": 1,
        "kept": True,
        "val_accuracy": 0.5,
        "val_rows": 40,
        "val_macro_f1": 0.5,
    },
]
CLASSES = [f"class <{c}>" for c in range(6)]


def _evaluated(seed: int, fragment: str):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(CLASSES), 400)
    logits = rng.normal(size=(400, len(CLASSES))) + 2 * np.eye(len(CLASSES))[truth]
    values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), len(CLASSES))
    table = pa.table(
        {
            "id": [str(i) for i in range(400)],
            "truth": [CLASSES[t] for t in truth],
            "label": [CLASSES[c] for c in values.argmax(axis=1)],
            "probabilities": column,
            "modalities": pa.array([["image"]] * 400),
        }
    )
    found = evaluate_predictions(table, CLASSES)
    worst = [
        {
            "id": m.id,
            "truth": m.truth,
            "predicted": m.label,
            "probability": 0.5,
            "fragments": {"text": fragment},
        }
        for m in found.worst
    ]
    about = {"bundle": "b", "dataset": "d", "fingerprint": "f", "dataset_fingerprint": "g", "wall_s": 1.0}
    return found.metrics, {**about, "environment": MACHINE, "curves": found.curves, "worst": worst}


@pytest.fixture(scope="module")
def run() -> Run:
    of = {"val": _evaluated(0, "<i>of val</i>"), "test": _evaluated(1, "<i>of test</i>")}
    return Run(
        "runs/a",
        IDENTITY,
        LINES,
        {
            "wall_s": 100.0,
            "stages_s": {"forward": 99.5},
            "records": 10,
            "records_per_s": 1.0,
            "cpu_s_per_record": 6.0,
        },
        {split: metrics for split, (metrics, _) in of.items()},
        {split: {**details, "split": split} for split, (_, details) in of.items()},
        CONFIG,
        [{**MACHINE, "command": "xmodal train --data first"}, MACHINE],
    )


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return render(run)


def test_page_is_whole_and_small(page: str) -> None:
    self_contained(page)
    well_formed(page)
    assert "<script" not in page and len(page) < 1_500_000


def test_the_test_split_comes_first_and_the_others_are_folded_away(page: str) -> None:
    assert page.index('id="split-test"') < page.index("of test</i>") < page.index('id="split-val"')
    assert page.index('<details class="chapter" id="split-val">') < page.index("of val</i>")
    assert "On the test split, " in page and '<span class="label">Test accuracy</span>' in page
    assert "class &lt;5&gt;" in page and "class <5>" not in page


def test_settings_can_be_taken_away(page: str) -> None:
    assert "note: &lt;/code&gt;&lt;b&gt;é" in page
    address = re.search(r'download="config.yaml" href="data:text/yaml;base64,([^"]*)"', page)
    assert address is not None and base64.b64decode(address[1]).decode() == CONFIG


def test_environment_names_every_command_of_a_run_seeds_machines_and_time(page: str) -> None:
    for words in (
        "command 1 of 2",
        "2030-01-02 03:04:05 UTC: xmodal train --data first", "2 on one, two", "train.seed 5",
        "splits and order 7", "1 min 40 s of the last command; 1 min 00 s of CPU time",
        "2 nodes, 8 CPUs, 1 GPU", "h: CPU, 1 core, 8.0 GiB", "H100",
        "no git repository", "data/d, fingerprint 0123456789ab",
    ):  # fmt: skip
        assert words in page, words


def test_a_run_that_goes_on_and_knows_nothing_of_its_settings_and_machine() -> None:
    html = render(Run("runs/a", IDENTITY, LINES))
    self_contained(html)
    well_formed(html)
    assert "the run has not come to its end" in html and "train.seed" in html and "Not evaluated yet" in html


def test_the_best_epoch_is_the_latest_whose_weights_were_kept():
    lines = [
        {"event": "epoch", "epoch": e, "step": e, "kept": kept, "val_loss": 1.0, "val_accuracy": accuracy}
        for e, (kept, accuracy) in enumerate([(True, 0.9), (True, 0.6), (False, 0.7)])
    ]
    page = render(Run("run", IDENTITY, lines))
    assert re.findall(r'<tr class="chosen"><td>(\d) \(best\)', page) == ["1"]
    assert "of the best epoch, 1" in page
