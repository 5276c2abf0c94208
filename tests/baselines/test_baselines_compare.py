"""A comparison from end to end, and what it says of networks that win, lose or tie."""

from __future__ import annotations

import html
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.score.bundles import save_tiny_bundle
from xmodal_dist.baselines.compare import NetworkPredictions, Plan, compare_with_baselines, plan
from xmodal_dist.baselines.models import named
from xmodal_dist.baselines.rows import join, read_split
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.report.page import self_contained

FAST = ("logistic_regression", "gaussian_nb")
FIELDS = ("picture", "caption", "weather")


@pytest.fixture(scope="module")
def tiny(tiny_dataset):
    manifest = load_manifest(tiny_dataset)
    specs = fit_fields(tiny_dataset, manifest, {}, 1000)
    rows = join(list(read_split(tiny_dataset, manifest, "test", specs, manifest.classes, None)))
    return tiny_dataset, manifest, specs, rows


def _network(rows, share_right, seed=0):
    wrong = np.random.default_rng(seed).random(len(rows.ids)) >= share_right
    predicted = np.where(wrong, (rows.labels + 1) % 3, rows.labels)
    alone = {(field,): (rows.labels + 1) % 3 for field in FIELDS}
    return NetworkPredictions(rows.ids, {FIELDS: predicted, **alone}, 12.5)


def _compared(tiny, network, max_rows=1000):
    dataset, manifest, specs, _ = tiny
    asked = Plan("test", specs, named(FAST), max_rows)
    return compare_with_baselines(dataset, manifest, asked, manifest.classes, network)


def test_everything_is_compared_on_the_same_rows(tiny):
    rows = tiny[3]
    result, predictions = _compared(tiny, _network(rows, 1.0))
    json.dumps(result, allow_nan=False)
    assert result["rows"] == len(rows.ids) == 15 and result["rows_only_one_side"] == 0
    assert result["rows_fitted"] == result["rows_train"] == 120 and result["rows_chosen_on"] == 15
    names = [model["name"] for model in result["models"]]
    expected = {f"{b}:{f}" for b in FAST for f in (*FIELDS, "stack")} | {"best:stack"}
    expected |= {"network:picture+caption+weather", *(f"network:{f}" for f in FIELDS)}
    assert set(names) == expected and len(names) == len(expected)
    accuracies = [model["accuracy"] for model in result["models"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert predictions.column_names[:2] == ["id", "truth"] and set(predictions.column_names[2:]) == expected
    assert predictions["id"].to_pylist() == rows.ids
    truth = np.array(predictions["truth"].to_pylist())
    for model in result["models"]:
        assert model["accuracy"] == (np.array(predictions[model["name"]].to_pylist()) == truth).mean()
        low, high = model["accuracy_interval"]
        assert low <= model["accuracy"] <= high
    by_name = {model["name"]: model for model in result["models"]}
    assert by_name["logistic_regression:picture"]["accuracy"] > 0.6
    assert by_name["network:picture+caption+weather"]["fit_cpu_s"] == 12.5
    assert len(result["comparisons"]) == len(names) - 1 + 1
    assert all(c["p"] <= c["p_holm"] <= 1 for c in result["comparisons"])


def test_the_same_comparison_twice_gives_the_same(tiny):
    def timeless(content):
        return {
            name: timeless(value) if isinstance(value, dict)
            else [timeless(v) if isinstance(v, dict) else v for v in value] if isinstance(value, list)
            else value
            for name, value in content.items()
            if not name.endswith("cpu_s")
        }  # fmt: skip

    first, second = (_compared(tiny, _network(tiny[3], 0.5)) for _ in range(2))
    assert timeless(first.result) == timeless(second.result) and first.predictions == second.predictions


def test_rows_that_the_network_could_not_score_are_left_out_and_counted(tiny):
    rows = tiny[3]
    network = _network(rows, 1.0)
    kept = [i for i in range(len(rows.ids)) if i not in (2, 9)][::-1]
    part = NetworkPredictions(
        [rows.ids[i] for i in kept], {f: v[kept] for f, v in network.by_fields.items()}, None
    )
    result, predictions = _compared(tiny, part)
    assert result["rows"] == 13 and result["rows_only_one_side"] == 2
    assert predictions["network:picture+caption+weather"] == predictions["truth"]
    with pytest.raises(DataError, match="no record in common"):
        _compared(tiny, part._replace(ids=["x"] * 13))


def test_max_rows_bounds_what_is_fitted(tiny):
    result, _ = _compared(tiny, _network(tiny[3], 1.0), max_rows=40)
    assert result["rows_fitted"] == 40 and result["max_rows"] == 40 and result["rows"] == 15


def test_the_verdict_is_plain_about_a_network_that_loses(tiny):
    result, _ = _compared(tiny, _network(tiny[3], 0.0))
    assert result["verdict"][0].startswith("The network does not win; it loses: the network reaches 0.0 %")
    assert any("fusion does not beat the best single modality" in sentence for sentence in result["verdict"])


def test_what_cannot_be_compared_is_refused(tiny):
    _, manifest, specs, _ = tiny
    with pytest.raises(UsageError, match="no field 'video'; its fields: picture, caption, weather"):
        plan(manifest, "test", specs, ["video"], [], 10)
    with pytest.raises(UsageError, match="the classical models are fitted to it"):
        plan(manifest, "train", specs, [], [], 10)
    with pytest.raises(UsageError, match="no split 'holdout'"):
        plan(manifest, "holdout", specs, [], [], 10)
    chosen = plan(manifest, "test", specs, ["weather", "picture"], [], 10)
    assert chosen.field_sets == [("picture", "weather"), ("picture",), ("weather",)]
    assert plan(manifest, "test", specs, ["caption"], [], 10).field_sets == [("caption",)]


@pytest.mark.slow
def test_the_command(ray_session, capsys, tiny_dataset, tmp_path):
    from xmodal_dist.cli import main

    bundle = save_tiny_bundle(tiny_dataset, tmp_path / "run" / "bundle")
    (tmp_path / "run" / "goodput.json").write_text('{"records": 100, "cpu_s_per_record": 0.05}')
    output = tmp_path / "compared"
    arguments = ["compare", "--bundle", bundle, "--data", tiny_dataset, "--output", str(output)]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--baselines", "gaussian_nb, linear_svm", "--fields", "picture,weather", "--json"])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    result = json.loads(out)
    assert result == json.loads((output / "comparison.json").read_text())
    assert result["fields"] == ["picture", "weather"] and result["rows"] == 15
    network = next(m for m in result["models"] if m["role"] == "network")
    assert network["fields"] == ["picture", "weather"] and network["fit_cpu_s"] == pytest.approx(5)
    predictions = pq.read_table(output / "predictions.parquet")
    said = pq.read_table(next((output / "scoring" / "data").glob("*.parquet")))
    classes = load_manifest(tiny_dataset).classes
    best = np.array(said["subset:picture+weather"].to_pylist()).argmax(axis=1)
    assert predictions["network:picture+weather"].to_pylist() == [classes[c] for c in best]
    page = (output / "report.html").read_text()
    self_contained(page)
    assert all(
        html.escape(sentence, quote=False).replace("'", "&#39;") in page for sentence in result["verdict"]
    )
