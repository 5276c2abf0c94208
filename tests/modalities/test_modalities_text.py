"""Text: reproducible tokens, joined columns, strict UTF-8."""

from __future__ import annotations

import json
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities.text import MODALITY, TextSettings

TITLES = ["grinning face", "crying face", "red heart", "flag: Norway", "flag: Peru", "dog face"] * 4


def _fit(column: Any = TITLES, **values: Any) -> Fitted:
    return MODALITY.fit(TextSettings(**values), pa.table({"title": column}))


def _ids(fitted: Fitted, *columns: Any) -> np.ndarray[Any, Any]:
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, pa.string()) for c in columns]
    return MODALITY.decode(TextSettings(), fitted, arrays, None).arrays["ids"]


def test_case_width_and_space_do_not_matter_and_known_words_are_one_token() -> None:
    fitted = _fit()
    ids = _ids(fitted, ["flag face", "  FLAG face\n", "\uff26lag face"])
    assert (ids == ids[0]).all()
    assert (ids[0] != 0).sum() == 2


def test_columns_are_joined_with_a_border_and_blank_ones_left_out() -> None:
    fitted = MODALITY.fit(TextSettings(), pa.table({"a": TITLES, "b": TITLES}))
    both, first, second, swapped = _ids(
        fitted, ["red heart", "red heart", None, "dog face"], ["dog face", " \t", "dog face", "red heart"]
    )
    separator = json.loads(fitted.files["tokenizer.json"])["model"]["vocab"]["[SEP]"]
    assert (both == separator).sum() == 1
    assert separator not in first and separator not in second
    assert not np.array_equal(both, swapped)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12).filter(lambda word: word.split() == [word]), max_size=8))
def test_words_one_by_one_are_what_the_tokenizer_makes_of_the_text(words: list[str]) -> None:
    texts = [" ".join(w.encode("utf-8", "ignore").decode() for w in words)] * 2
    tokenizer = Tokenizer.from_str(_FITTED.files["tokenizer.json"])
    # A white space mark that NFKC makes of one character ends a word for the tokenizer, too, but not for us.
    assume(all(len(unicodedata.normalize("NFKC", w).split()) == 1 for w in texts[0].split()))
    expected = tokenizer.encode(texts[0]).ids[: _FITTED.values["num_tokens"]]
    for row in _ids(_FITTED, texts):  # new words, then known ones
        assert row[: len(expected)].tolist() == expected and not row[len(expected) :].any()


def test_any_white_space_is_a_border() -> None:
    spaced, plain = _ids(_fit(), ["  dog\u00a0\t\r\nface\u3000", "dog face"])
    assert np.array_equal(spaced, plain)


def test_no_text_is_missing() -> None:
    columns = [pa.array([None, "", "  ", "x"]), pa.array([None, None, "\n", None], pa.string())]
    decoded = MODALITY.decode(TextSettings(), _fit(), columns, None)
    assert decoded.present.tolist() == [False, False, False, True]
    assert not decoded.arrays["ids"][:3].any()


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view()]
)
def test_column_types_give_equal_ids(kind: pa.DataType) -> None:
    fitted = _fit()
    column = pa.array(["dog face", None, "r\u00e9d"])
    expected = _ids(fitted, column)
    if pa.types.is_string_view(kind):
        column = pa.array(column.to_pylist(), kind)
    np.testing.assert_array_equal(_ids(fitted, column.cast(kind)), expected)
    np.testing.assert_array_equal(
        _ids(fitted, pa.array(["dog face", None, "r\u00e9d"]).dictionary_encode()), expected
    )


def test_bytes_that_are_not_utf8_are_rejected_in_string_columns_too() -> None:
    raw = pa.array([b"fine", b"\xc3\x28", None, b"\xed\xa0\x80"])  # a bad second byte; a lone surrogate
    claimed = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    for column in (raw, claimed):
        decoded = MODALITY.decode(TextSettings(), _fit(), [column], None)
        assert {row: e.reason for row, e in decoded.errors.items()} == {
            1: "text_not_utf8",
            3: "text_not_utf8",
        }
        assert decoded.present.tolist() == [True, False, False, False]


def test_numbers_are_text_and_nested_values_are_not() -> None:
    fitted = _fit()
    np.testing.assert_array_equal(_ids(fitted, pa.array([12, None])), _ids(fitted, ["12", None]))
    decoded = MODALITY.decode(TextSettings(), fitted, [pa.array([["a"], None])], None)
    assert {row: e.reason for row, e in decoded.errors.items()} == {0: "column_type"}


def test_length_from_fit_and_cut() -> None:
    fitted = _fit(["word " * 50] * 3, max_tokens=20)
    assert fitted.values["num_tokens"] == 20
    ids = _ids(fitted, ["word", "word " * 10_000_000])
    assert (ids != 0).sum(axis=1).tolist() == [1, 20]
    assert _fit(["two words"] * 100).values["num_tokens"] == 2


def test_equal_samples_give_equal_tokenizers_in_any_order() -> None:
    assert _fit(TITLES).files == _fit(TITLES[::-1]).files
    vocabulary = json.loads(_fit(TITLES).files["tokenizer.json"])["model"]["vocab"]
    assert vocabulary["[PAD]"] == 0
    assert max(vocabulary.values()) + 1 == _fit(TITLES).values["vocab_size"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | st.text(max_size=40), min_size=1, max_size=6))
def test_any_text_decodes(texts: list[str | None]) -> None:
    valid = [None if t is None else t.encode("utf-8", "ignore").decode() for t in texts]
    decoded = MODALITY.decode(TextSettings(), _FITTED, [pa.array(valid, pa.string())], None)
    assert not decoded.errors
    assert decoded.present.tolist() == [t is not None and bool(t.strip()) for t in valid]
    assert decoded.arrays["ids"].max(initial=0) < _FITTED.values["vocab_size"]


_FITTED = _fit()


def test_threads_share_one_tokenizer() -> None:
    columns = [[f"dog face {i}" for i in range(50)]] * 8
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda column: _ids(_FITTED, column), columns))
    assert all(np.array_equal(results[0], other) for other in results)


def test_dropout_leaves_out_about_its_share_of_tokens() -> None:
    ids = torch.full((200, 20), 5, dtype=torch.int32)
    out = MODALITY.transform(TextSettings(token_dropout=0.25), _FITTED, {"ids": ids}, torch.arange(200))[
        "ids"
    ]
    assert out.dtype == torch.int64
    assert set(out.unique().tolist()) == {0, 5}
    assert abs(float((out == 0).float().mean()) - 0.25) < 0.03


@pytest.mark.parametrize("kind", ["transformer", "gru", "lstm", "bag"])
def test_every_encoder_runs(kind: str) -> None:
    encoder = MODALITY.encoder(TextSettings.model_validate({"encoder": kind}), _FITTED, 8)
    assert encoder({"ids": torch.tensor([[3, 4, 0], [0, 0, 0]])}).shape == (2, 8)


def test_infer_tells_prose_from_codes() -> None:
    prose = pa.array(["the quick brown fox jumps over the lazy dog"] * 5)
    assert MODALITY.infer("c", prose) > MODALITY.infer("c", pa.array(["red", "blue"])) > 0
    assert MODALITY.infer("c", pa.array([1.0])) == MODALITY.infer("c", pa.array([b"\xff\xd8"])) == 0


def test_render_cuts_and_escapes() -> None:
    page = MODALITY.render(["<b>", b"\xff bytes", "x" * 1000])
    assert page.startswith("&lt;b&gt;<br>\ufffd bytes<br>xxx") and len(page) < 600


def test_measures_count_tokens_and_what_the_vocabulary_has_no_piece_of() -> None:
    fitted = _fit()
    ids = _ids(fitted, ["grinning face", "\u0434\u043e\u043c", None])
    found = MODALITY.measures(TextSettings(), fitted, {"ids": ids})
    assert found["tokens"].tolist()[::2] == [2, 0]
    assert found["unknown_share"].tolist()[0] == 0 and found["unknown_share"].tolist()[1] > 0.8
