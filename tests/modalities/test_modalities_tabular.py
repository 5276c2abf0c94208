"""Tables: standardised numbers, category ids, missing values told from unknown and wrong ones."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_dist.modalities import Decoded, Fitted
from xmodal_dist.modalities.tabular import MODALITY, TabularSettings


def _fit(columns: dict[str, Any], **values: Any) -> Fitted:
    return MODALITY.fit(TabularSettings(**values), pa.table(columns))


def _decode(fitted: Fitted, *columns: pa.Array) -> Decoded:
    return MODALITY.decode(TabularSettings(), fitted, columns, None)


def test_numbers_are_standardised_and_nonfinite_ones_missing() -> None:
    fitted = _fit({"x": [1.0, 3.0, None, float("nan"), float("inf")]})
    decoded = _decode(fitted, pa.array([1.0, 3.0, None, float("nan"), float("-inf"), 2.0]))
    assert decoded.arrays["numeric"][:, 0].tolist() == [-1, 1, 0, 0, 0, 0]
    assert decoded.present.tolist() == [True, True, False, False, False, True]
    assert not decoded.errors


def test_missing_is_marked_in_records_that_are_there() -> None:
    fitted = _fit({"x": [1.0, 3.0], "y": ["a", "a"]})
    decoded = _decode(fitted, pa.array([None, 1.0, None], pa.float64()), pa.array(["a", None, None]))
    assert decoded.arrays["missing"][:, 0].tolist() == [True, False, False]
    assert decoded.arrays["categorical"][:, 0].tolist() == [2, 0, 0]
    assert decoded.present.tolist() == [True, True, False]


def test_strings_in_a_numeric_column_are_read_or_rejected() -> None:
    fitted = _fit({"x": [0.0, 2.0]})
    texts = [" 2 ", "+0", "1e0", ".5", "-1.", "nan", "-Infinity", "", None, "two", "1,5", "0x10"]
    decoded = _decode(fitted, pa.array(texts))
    assert decoded.arrays["numeric"][:5, 0].tolist() == [1, -1, 0, -0.5, -2]
    assert {row: error.reason for row, error in decoded.errors.items()} == dict.fromkeys(
        [9, 10, 11], "column_type"
    )
    assert "'x'" in str(decoded.errors[9])
    assert decoded.present.tolist() == [True] * 5 + [False] * 7


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 3], pa.int8()),
        pa.array([1, 3], pa.uint64()),
        pa.array([Decimal("1.0"), Decimal("3.0")]),
        pa.array([datetime.date(1970, 1, 2), datetime.date(1970, 1, 4)]),
        pa.array([datetime.datetime(1970, 1, 2), datetime.datetime(1970, 1, 4)], pa.timestamp("ns")),
    ],
)
def test_number_types(column: pa.Array) -> None:
    fitted = _fit({"x": column})
    assert fitted.values["columns"] == [{"name": "x", "mean": 2.0, "std": 1.0}]
    assert _decode(fitted, column).arrays["numeric"][:, 0].tolist() == [-1, 1]


def test_categories_by_frequency_rare_and_new_ones_unknown() -> None:
    fitted = _fit({"c": ["b", "a", "b", "a", "b", "rare", None, " b "]})
    assert fitted.values["columns"] == [{"name": "c", "categories": ["b", "a"]}]
    decoded = _decode(fitted, pa.array(["b", "a ", "rare", "new", None, ""]))
    assert decoded.arrays["categorical"][:, 0].tolist() == [2, 3, 1, 1, 0, 0]
    assert _fit({"c": ["a", "a", "b", "b"]}, max_categories=1).values["columns"][0]["categories"] == ["a"]


def test_booleans_are_categories_and_dictionaries_are_read() -> None:
    fitted = _fit({"b": [True, True, False, False]})
    assert _decode(fitted, pa.array([False, True, None])).arrays["categorical"][:, 0].tolist() == [2, 3, 0]
    coded = pa.array(["a", "a", "b"]).dictionary_encode()
    assert _decode(_fit({"c": coded}), coded).arrays["categorical"][:, 0].tolist() == [2, 2, 1]


def test_values_of_no_usable_type_are_rejected() -> None:
    fitted = _fit({"x": [1.0, 2.0], "c": ["a", "a"]})
    nested = pa.array([[1], None])
    decoded = _decode(fitted, nested, nested)
    assert {row: error.reason for row, error in decoded.errors.items()} == {0: "column_type"}
    assert decoded.present.tolist() == [False, False]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.none() | st.floats(), min_size=1, max_size=8), st.lists(st.none() | st.floats(), max_size=8)
)
def test_any_numbers_give_finite_bounded_features(
    train: list[float | None], values: list[float | None]
) -> None:
    fitted = _fit({"x": pa.array(train, pa.float64())})
    decoded = _decode(fitted, pa.array(values, pa.float64()))
    assert (np.abs(decoded.arrays["numeric"]) <= 10).all()
    assert decoded.present.tolist() == [v is not None and bool(np.isfinite(v)) for v in values]


def test_only_numbers_and_only_categories() -> None:
    for columns in ({"x": [1.0, 2.0]}, {"c": ["a", "a"]}):
        fitted = _fit(columns)
        decoded = _decode(fitted, *(pa.array(v) for v in columns.values()))
        tensors = {name: torch.from_numpy(array) for name, array in decoded.arrays.items()}
        tensors = MODALITY.transform(TabularSettings(), fitted, tensors, torch.tensor([1, 2]))
        assert MODALITY.encoder(TabularSettings(), fitted, 8)(tensors).shape == (2, 8)


def test_dropout_hides_values_as_missing() -> None:
    tensors = {
        "numeric": torch.ones(400, 3),
        "missing": torch.zeros(400, 3, dtype=torch.bool),
        "categorical": torch.full((400, 2), 4, dtype=torch.int32),
    }
    out = MODALITY.transform(TabularSettings(value_dropout=0.25), Fitted(), tensors, torch.arange(400))
    assert torch.equal(out["numeric"] == 0, out["missing"])
    assert abs(float(out["missing"].float().mean()) - 0.25) < 0.04
    assert abs(float((out["categorical"] == 0).float().mean()) - 0.25) < 0.04


def test_infer_tells_categories_from_prose() -> None:
    assert MODALITY.infer("c", pa.array([1, 2])) == MODALITY.infer("c", pa.array([True])) == 0.9
    assert MODALITY.infer("c", pa.array(["United States", "Peru"] * 20)) == 0.7
    assert MODALITY.infer("c", pa.array([f"title {i}" for i in range(40)])) < 0.5
    assert MODALITY.infer("c", pa.array([[1], [2]])) == 0


def test_render_escapes_and_shows_gaps() -> None:
    assert MODALITY.render([1.5, None, "<b>"]) == "1.5 · – · &lt;b&gt;"


def test_measures_are_values_as_given_and_shares_of_what_is_missing_or_unknown() -> None:
    table = pa.table({"size": [1.0, 2.0, 3.0, 1e308], "colour": ["red", "red", "blue", "blue"]})
    fitted = MODALITY.fit(TabularSettings(), table.slice(0, 3))
    columns = [pa.array([2.0, None, 1e308]), pa.array(["red", "green", None])]
    decoded = MODALITY.decode(TabularSettings(), fitted, columns, None)
    found = MODALITY.measures(TabularSettings(), fitted, decoded.arrays)
    assert found["column:size"].tolist()[0] == pytest.approx(2.0)
    assert np.isnan(found["column:size"]).tolist() == [False, True, False]
    assert found["column:size"].tolist()[2] == pytest.approx(2 + 10 * fitted.values["columns"][0]["std"])
    assert found["column:colour"].tolist()[:2] == [2, 1] and np.isnan(found["column:colour"][2])
    assert found["missing_share"].tolist() == [0, 0.5, 0.5]
    assert found["unknown_share"].tolist() == [0, 0.5, 0]
    huge = MODALITY.fit(TabularSettings(), pa.table({"size": [-1e308, 1e308]}))
    decoded = MODALITY.decode(TabularSettings(), huge, [pa.array([1e308])], None)
    assert np.isfinite(MODALITY.measures(TabularSettings(), huge, decoded.arrays)["column:size"]).all()
