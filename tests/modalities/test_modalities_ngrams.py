"""Sets of words, pairs and pieces: each once, in the order of the words, and none of what the vocabulary lacks."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal_dist.encoders.ngrams import NgramBag
from xmodal_dist.encoders.tokens import rarity_weights
from xmodal_dist.modalities import load
from xmodal_dist.modalities.ngrams import FIRST_ID, Ngrams, learn_ngrams

MODALITY = load("text")
SETTINGS = MODALITY.settings(encoder="ngrams")
TEXTS = ["red apple", "red leaf", "Red ocean sky", "leaf"]


def _vocabulary(*texts: str, size: int = 1000) -> list[str]:
    names: list[str] = json.loads(learn_ngrams([[text] for text in texts], size, 1))
    return names


def test_words_pairs_and_pieces_are_learned_the_most_frequent_first() -> None:
    found = _vocabulary(*TEXTS)
    assert {"red", "apple", "red apple", "\t re", "\tpple "} <= set(found)
    assert "apple red" not in found and "leaf Red" not in found
    assert found.index("red") < found.index("apple")
    assert _vocabulary(*reversed(TEXTS)) == found
    pieces = [name.startswith("\t") for name in found]
    assert pieces == sorted(pieces) and Ngrams(found).first_piece == FIRST_ID + pieces.index(True)
    few = _vocabulary(*TEXTS, size=FIRST_ID + 3)
    assert len(few) == 3 and all(sum(name.strip() in text.lower() for text in TEXTS) >= 2 for name in few)


@given(st.lists(st.text("abc -É", max_size=20), min_size=1, max_size=3), st.integers(1, 30))
def test_ids_are_distinct_and_words_account_for_each(texts: list[str], num_tokens: int) -> None:
    ngrams = Ngrams(_vocabulary("ab c", "cab", "aé bc"))
    (row,) = ngrams.encode([[text] for text in texts], num_tokens)
    ids = np.frombuffer(row, np.int32)
    assert len(set(ids.tolist())) == len(ids) <= num_tokens
    spoken = [text for text in texts if text.strip()]
    counts = ngrams.words(spoken, num_tokens)
    assert sum(count for _, count in counts) == len(ids)
    has_words = any(word for word, _ in counts)
    assert bool(len(ids)) == has_words, (
        "a record with words is there, though the vocabulary knows none of them"
    )


def test_a_text_of_unknown_words_is_present_and_one_without_words_is_not() -> None:
    fitted = MODALITY.fit(SETTINGS, pa.table({"text": TEXTS}))
    decoded = MODALITY.decode(SETTINGS, fitted, [pa.array(["red", "zzz", "", None, "!?"])], None)
    assert decoded.present.tolist() == [True, True, False, False, False]
    assert decoded.arrays["ids"][1].tolist()[:2] == [1, 0]
    measures = MODALITY.measures(SETTINGS, fitted, decoded.arrays)
    assert measures["unknown_share"][:2].tolist() == [0.0, 1.0]


def test_weights_are_those_of_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfTransformer

    table = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 1, 0]])
    expected = TfidfTransformer().fit_transform(table).toarray()
    weights = rarity_weights([0, *table.sum(axis=0).tolist()], len(table))
    ids = torch.from_numpy(table * np.arange(1, 4))
    for first_piece in (1, 4):
        bag = NgramBag(weights, first_piece, 3).double()
        with torch.no_grad():
            bag.embed.weight[1:] = torch.eye(3)
        assert bag(ids).detach().numpy() == pytest.approx(expected, abs=1e-6)


def test_words_and_pieces_weigh_alike_however_many_they_are() -> None:
    bag = NgramBag(torch.ones(8), 3, 8).double()
    with torch.no_grad():
        bag.embed.weight[1:] = torch.eye(8)[1:]
        features = bag(torch.tensor([[1, 2, 3, 4, 5, 6, 7], [1, 3, 0, 0, 0, 0, 0]]))
    assert features[:, :3].norm(dim=1).tolist() == pytest.approx([1, 1])
    assert features[:, 3:].norm(dim=1).tolist() == pytest.approx([1, 1])


def test_the_encoder_is_built_from_what_was_fitted() -> None:
    fitted = MODALITY.fit(SETTINGS, pa.table({"text": TEXTS}))
    encoder = MODALITY.encoder(SETTINGS, fitted, 8).eval()
    decoded = MODALITY.decode(SETTINGS, fitted, [pa.array([*TEXTS, None])], None)
    tensors = {"ids": torch.from_numpy(decoded.arrays["ids"].copy())}
    with torch.no_grad():
        features = encoder(MODALITY.transform(SETTINGS, fitted, tensors, None))
        alone = encoder({"ids": tensors["ids"][1:2].long()})
    assert features.shape == (5, 8) and features[4].abs().max() == 0 and features[:4].abs().min() > 0
    assert torch.equal(features[1:2], alone)
