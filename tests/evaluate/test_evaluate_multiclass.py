"""Evaluation of a table of predictions."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from xmodal_dist.calibrate import NOTHING
from xmodal_dist.errors import DataError
from xmodal_dist.evaluate import evaluate_predictions, subset_column
from xmodal_dist.metrics import classification_metrics

CLASSES = ["cat", "dog", "owl"]
FIELDS = ["image", "audio"]


def _softmax(logits):
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)


def _column(probabilities):
    return pa.FixedSizeListArray.from_arrays(
        pa.array(probabilities.ravel(), pa.float32()), probabilities.shape[1]
    )


def _predictions(rows: int = 60, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, rows)
    one_hot = np.eye(3)[truth]
    image = _softmax(rng.normal(size=(rows, 3)) + one_hot)
    audio = _softmax(rng.normal(size=(rows, 3)) + 2 * one_hot)
    both = _softmax(np.log(image) + np.log(audio) + one_hot)
    label = both.argmax(axis=1)
    return pa.table(
        {
            "id": [f"r{i:03d}" for i in range(rows)],
            "truth": [CLASSES[t] for t in truth],
            "label": [CLASSES[c] for c in label],
            "probability": pa.array(both.max(axis=1), pa.float32()),
            "probabilities": _column(both),
            "modalities": pa.array([["image"] if i % 3 == 0 else FIELDS for i in range(rows)]),
            subset_column(["image"]): _column(image),
            subset_column(["audio"]): _column(audio),
            subset_column(FIELDS): _column(both),
        }
    )


def _replaced(table: pa.Table, name: str, values) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def test_metrics_are_those_of_the_probabilities():
    table = _predictions()
    evaluation = evaluate_predictions(table, CLASSES)
    json.dumps(evaluation.metrics, allow_nan=False)
    json.dumps(evaluation.curves, allow_nan=False)
    truth = np.array([CLASSES.index(t) for t in table["truth"].to_pylist()])
    probabilities = np.array(table["probabilities"].to_pylist(), dtype=np.float32)
    expected = classification_metrics(truth, probabilities, CLASSES)
    for c, name in enumerate(CLASSES):
        precision = average_precision_score(truth == c, probabilities[:, c])
        expected["per_class"][name]["average_precision"] = pytest.approx(precision)
    assert {key: evaluation.metrics[key] for key in expected} == expected
    precisions = [values["average_precision"] for values in evaluation.metrics["per_class"].values()]
    assert evaluation.metrics["average_precision"] == pytest.approx(np.mean(precisions))
    assert sum(evaluation.curves["reliability"]["rows"]) == 60
    more = {
        "average_precision",
        "per_subset",
        "best_single",
        "fusion_gain",
        "withheld",
        "uncalibrated",
        "abstention",
    }
    assert set(evaluation.metrics) == set(expected) | more
    assert evaluation.metrics["uncalibrated"] is None and evaluation.metrics["abstention"] == []


def test_subsets_and_what_fusion_gains():
    table = _predictions(300)
    found = evaluate_predictions(table, CLASSES).metrics
    assert list(found["per_subset"]) == ["image", "audio", "image+audio"]
    assert [found["per_subset"][s]["rows_present"] for s in found["per_subset"]] == [300, 200, 200]
    assert all(values["rows"] == 300 for values in found["per_subset"].values())
    assert found["per_subset"]["image+audio"]["accuracy"] == found["accuracy"]
    assert found["best_single"] == "audio"
    assert found["fusion_gain"] == pytest.approx(found["accuracy"] - found["per_subset"]["audio"]["accuracy"])
    truth, audio = table["truth"].to_pylist(), np.array(table["subset:audio"].to_pylist()).argmax(axis=1)
    hits = [CLASSES[audio[i]] == truth[i] for i in range(300) if i % 3]
    assert found["per_subset"]["audio"]["accuracy_present"] == pytest.approx(np.mean(hits))


def test_subset_that_no_record_has():
    table = _replaced(_predictions(6), "modalities", pa.array([["image"]] * 6))
    audio = evaluate_predictions(table, CLASSES).metrics["per_subset"]["audio"]
    assert audio["rows_present"] == 0 and audio["accuracy_present"] is None and audio["rows"] == 6


def test_without_subsets():
    table = _predictions(10)
    plain = evaluate_predictions(table.select(table.column_names[:6]), CLASSES).metrics
    assert plain["per_subset"] == {} and plain["best_single"] is None and plain["fusion_gain"] is None
    single = evaluate_predictions(table.select(table.column_names[:7]), CLASSES).metrics
    assert single["best_single"] == "image" and single["fusion_gain"] is None


def test_worst_errors_are_the_most_confident_ones():
    table = _predictions(200)
    worst = evaluate_predictions(table, CLASSES, num_worst=5).worst
    rows = [r for r in table.to_pylist() if r["truth"] != r["label"]]
    rows.sort(key=lambda r: -r["probability"])
    assert [(w.id, w.truth, w.label, w.probability) for w in worst] == [
        (r["id"], r["truth"], r["label"], r["probability"]) for r in rows[:5]
    ]
    everything = evaluate_predictions(table, CLASSES, num_worst=1000)
    assert len(everything.worst) == len(rows) == 200 - np.trace(everything.metrics["confusion_matrix"])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 50), st.integers(0, 99), st.integers(1, 7))
def test_order_and_chunks_do_not_matter(rows, seed, chunk_rows):
    table = _predictions(rows, seed)
    order = np.random.default_rng(seed).permutation(rows)
    shuffled = table.take(order)
    chunked = pa.concat_tables([shuffled.slice(i, chunk_rows) for i in range(0, rows, chunk_rows)])
    one, other = evaluate_predictions(table, CLASSES), evaluate_predictions(chunked, CLASSES)
    assert one.worst == other.worst
    assert one.metrics["confusion_matrix"] == other.metrics["confusion_matrix"]
    assert one.metrics["log_loss"] == pytest.approx(other.metrics["log_loss"])
    for name, values in one.metrics["per_subset"].items():
        assert values == pytest.approx(other.metrics["per_subset"][name])


def _everything(rows: int, seed: int) -> pa.Table:
    """As evaluation scores: also with nothing shown, and records that lack any fields."""
    rng = np.random.default_rng(seed)
    table = _predictions(rows, seed)
    nothing = np.tile(np.array([0.2, 0.5, 0.3], np.float32), (rows, 1))
    present = rng.random((rows, 2)) < 0.7
    shown = {
        name: np.array(table[f"subset:{name}"].to_pylist()) for name in ("image", "audio", "image+audio")
    }
    for row, (image, audio) in enumerate(present):
        alone = shown["image" if image else "audio"][row] if image or audio else nothing[row]
        for name, has in (("image", image), ("audio", audio)):
            shown[name][row] = shown[name][row] if has else nothing[row]
        shown["image+audio"][row] = shown["image+audio"][row] if image and audio else alone
    table = table.append_column(f"subset:{NOTHING}", _column(nothing))
    for name, values in shown.items():
        table = _replaced(table, f"subset:{name}", _column(values))
    whole = shown["image+audio"]
    table = _replaced(table, "probabilities", _column(whole))
    table = _replaced(table, "label", pa.array([CLASSES[c] for c in whole.argmax(axis=1)]))
    fields = [[f for f, has in zip(FIELDS, row, strict=True) if has] for row in present]
    return _replaced(table, "modalities", pa.array(fields, pa.list_(pa.string())))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.integers(0, 99))
def test_accuracy_with_fields_withheld_is_the_mean_over_all_masks(rows, seed):
    table = _everything(rows, seed)
    found = evaluate_predictions(table, CLASSES).metrics
    assert NOTHING not in found["per_subset"]
    truth = np.array([CLASSES.index(t) for t in table["truth"].to_pylist()])
    hits = {
        name: np.array(table[f"subset:{name}"].to_pylist()).argmax(axis=1) == truth
        for name in (NOTHING, "image", "audio", "image+audio")
    }
    for point in found["withheld"]:
        p, expected = point["share"], 0.0
        for image, audio in itertools.product(
            (False, True), repeat=2
        ):  # which fields are let through, of all
            name = "+".join(f for f, kept in zip(FIELDS, (image, audio), strict=True) if kept) or NOTHING
            weight = (1 - p if image else p) * (1 - p if audio else p)
            expected += weight * hits[name].mean()
        assert point["accuracy"] == pytest.approx(expected)
    assert [point["share"] for point in found["withheld"]] == [tenth / 10 for tenth in range(10)]
    assert found["withheld"][0]["accuracy"] == pytest.approx(found["accuracy"])


def test_without_what_every_subset_gives_nothing_is_said_of_withheld_fields():
    assert evaluate_predictions(_predictions(), CLASSES).metrics["withheld"] is None


def test_calibration_is_told_before_and_after():
    table = _predictions(300)
    probabilities = np.array(table["probabilities"].to_pylist(), dtype=np.float64)
    logits = 0.3 * np.log(probabilities)
    found = evaluate_predictions(table.append_column("logits", _column(logits)), CLASSES)
    before = found.metrics["uncalibrated"]
    assert before["ece"] > found.metrics["ece"] and before["log_loss"] > found.metrics["log_loss"]
    assert sum(found.curves["reliability_uncalibrated"]["rows"]) == 300
    assert all(0 <= values["ece"] <= 1 for values in found.metrics["per_subset"].values())


def test_what_thresholds_come_to():
    table = _predictions(300)
    found = evaluate_predictions(table, CLASSES, thresholds={0.8: 0.6, 0.99: 2.0, 1.0: None})
    sure = [row for row in table.to_pylist() if row["probability"] >= 0.6]
    kept, nothing, out_of_reach = found.metrics["abstention"]
    assert kept["coverage"] == pytest.approx(len(sure) / 300)
    assert kept["precision"] == pytest.approx(np.mean([row["label"] == row["truth"] for row in sure]))
    assert nothing["coverage"] == 0 and nothing["precision"] is None
    assert out_of_reach == {"target_precision": 1.0, "threshold": None, "coverage": None, "precision": None}
    curve = found.curves["abstention"]
    assert curve["coverage"][0] == 1 and curve["precision"][0] == found.metrics["accuracy"]
    assert curve["coverage"] == sorted(curve["coverage"], reverse=True)


def test_unknown_truth_names_labels_counts_and_classes():
    table = _predictions(6)
    table = _replaced(table, "truth", pa.array(["cat", "yak", "yak", "emu", "dog", None]))
    with pytest.raises(DataError) as caught:
        evaluate_predictions(table, CLASSES)
    message = str(caught.value)
    assert message.startswith("4 of 6 rows have a label that the model was not trained on: 'yak' (2 rows)")
    assert "'emu' (1 row)" in message and "no label (1 row)" in message
    assert "It knows: 'cat', 'dog', 'owl'." in message
    assert "Retrain" in message and "filter" in message


def test_many_unknown_labels_are_shortened_and_counted():
    table = _predictions(40)
    table = _replaced(table, "truth", pa.array([f"new{i:02d}" for i in range(40)]))
    with pytest.raises(DataError, match=r"'new09' \(1 row\) and 30 more\. It knows"):
        evaluate_predictions(table, CLASSES)


def test_unusable_predictions_are_refused():
    table = _predictions(6)
    with pytest.raises(DataError, match="no rows; is the split empty"):
        evaluate_predictions(table.slice(0, 0), CLASSES)
    with pytest.raises(DataError, match=r"lack the column\(s\) modalities, truth"):
        evaluate_predictions(table.drop_columns(["truth", "modalities"]), CLASSES)
    with pytest.raises(DataError, match="expected a fixed-size list of 4 numbers"):
        evaluate_predictions(table, [*CLASSES, "yak"])
    with pytest.raises(DataError, match="not their most probable class"):
        evaluate_predictions(table, ["owl", "dog", "cat"])
    broken = _column(np.full((6, 3), np.nan, dtype=np.float32))
    with pytest.raises(
        DataError, match="'probabilities' has values that are not finite: the model has diverged"
    ):
        evaluate_predictions(_replaced(table, "probabilities", broken), CLASSES)
