"""Explaining the tiny dataset from bundle to page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.score.bundles import tiny_bundle
from xmodal_dist import api
from xmodal_dist.bundle import Bundle, save_bundle
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.explain import job
from xmodal_dist.report.page import self_contained

FIELDS = ["picture", "caption", "weather"]


@pytest.fixture(scope="module")
def bundle(trained: Bundle, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("explained") / "bundle")
    save_bundle(path, trained)
    return path


@pytest.fixture(scope="module")
def output(bundle: str, tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of the train split, of which 8 records closely."""
    folder = tmp_path_factory.mktemp("explanation")
    api.explain(bundle, tiny_dataset, str(folder), split="train", rows=8)
    return folder


@pytest.fixture(scope="module")
def content(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "explanation.json").read_text())
    return found


def test_every_record_has_contributions_that_add_up(output: Path, content: dict[str, Any]) -> None:
    table = pq.read_table(output / "explanations.parquet").to_pylist()
    assert len(table) == content["rows"] == content["rows_split"] == 120
    assert len({row["id"] for row in table}) == 120
    for row in table:
        total = sum(value or 0.0 for value in row["contributions"].values())
        assert total == pytest.approx(row["probability"] - row["baseline"], abs=1e-6)
    absent = [sum(row["contributions"][name] is None for row in table) for name in FIELDS]
    assert absent == [120 - content["fields"][name]["rows_present"] for name in FIELDS] and max(absent) > 5
    signed = [content["fields"][name]["all"]["mean_signed"] for name in FIELDS]
    assert sum(signed) == pytest.approx(content["mean_probability"] - content["mean_baseline"], abs=1e-6)
    assert content["accuracy"] == np.mean([row["label"] == row["truth"] for row in table]) > 0.8


def test_records_say_the_same_as_the_table_and_name_what_they_lack(
    output: Path, content: dict[str, Any]
) -> None:
    table = {row["id"]: row for row in pq.read_table(output / "explanations.parquet").to_pylist()}
    assert content["explained_by"] == {"picture": "heat", "caption": "words", "weather": "columns"}
    assert len(content["records"]) == 8
    for record in content["records"]:
        row = table[record["id"]]
        assert (record["label"], record["truth"]) == (row["label"], row["truth"])
        for name in FIELDS:
            assert record["contributions"][name] == pytest.approx(row["contributions"][name], abs=1e-5)
            assert (name in record["fields"]) == (row["contributions"][name] is not None)
        if "picture" in record["fields"]:
            picture = record["fields"]["picture"]
            assert picture["method"] == "grad-cam"
            assert picture["map"] is None or np.max(picture["map"]) == 1
        if "caption" in record["fields"]:
            caption = record["fields"]["caption"]
            added = sum(value for _, value in caption["words"])
            assert added == pytest.approx(caption["total"], abs=0.003)
    assert [line["column"] for line in content["columns"]] == ["height", "kind_of_day"]


def test_errors_come_first_and_the_most_confident_before_others(content: dict[str, Any]) -> None:
    wrong = [r["probability"] for r in content["records"] if r["label"] != r["truth"]]
    verdicts = [r["label"] == r["truth"] for r in content["records"]]
    assert verdicts == sorted(verdicts) and wrong == sorted(wrong, reverse=True)
    assert sum(verdicts) >= 3


def test_the_page_stands_alone_and_shows_every_record(output: Path, content: dict[str, Any]) -> None:
    page = (output / "report.html").read_text()
    self_contained(page)
    for record in content["records"]:
        assert f'<span class="id">{record["id"]}</span>' in page
    maps = [r["fields"].get("picture", {}).get("map") for r in content["records"]]
    assert page.count('class="heat"') == sum(m is not None for m in maps) > 0
    assert "Grad-CAM" in page and "kind_of_day" in page


def test_twice_the_same(bundle: str, tiny_dataset: str, output: Path, tmp_path: Path) -> None:
    api.explain(bundle, tiny_dataset, str(tmp_path), split="train", rows=8)
    for name in ("explanation.json", "explanations.parquet"):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()


def test_asked_for_records_are_shown_whatever_the_bound(
    bundle: str, tiny_dataset: str, content: dict[str, Any]
) -> None:
    ids = [record["id"] for record in content["records"]][5:2:-1]
    found = job.explain(bundle, tiny_dataset, "train", ids=ids, max_rows=10)
    assert [record["id"] for record in found.content["records"]] == ids
    assert 10 <= found.content["rows"] <= 13 and found.content["rows_split"] == 120
    before = {record["id"]: record for record in content["records"]}
    for record in found.content["records"]:
        assert record["contributions"] == pytest.approx(before[record["id"]]["contributions"], abs=1e-5)


def test_mistakes_are_named(bundle: str, tiny_dataset: str) -> None:
    with pytest.raises(UsageError, match="split 'train' of .* has no record 'nobody' and 1 others"):
        job.explain(bundle, tiny_dataset, "train", ids=["nobody", "none"])
    with pytest.raises(UsageError, match="no split 'holdout'; its splits: test, train, val"):
        job.explain(bundle, tiny_dataset, "holdout")
    with pytest.raises(UsageError, match="--rows 0"):
        job.explain(bundle, tiny_dataset, "test", rows=0)


def test_a_model_that_has_diverged_is_refused(tiny_dataset: str, tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_dataset)
    with torch.no_grad():
        bundle.model.heads[0].bias.fill_(float("nan"))
    save_bundle(str(tmp_path / "bundle"), bundle)
    with pytest.raises(DataError, match="not finite"):
        job.explain(str(tmp_path / "bundle"), tiny_dataset, "test")
