"""Words: attributions are complete, fall on the words that matter, and belong to the words as written."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.explain.models import bundle_of, classifier, train_sample
from xmodal_dist.batch import Tensors
from xmodal_dist.bundle import Bundle
from xmodal_dist.encoders.tokens import TextEncoder, TextEncoderKind
from xmodal_dist.explain.tokens import attribute_tokens, merge_words
from xmodal_dist.modalities.fields import transform
from xmodal_dist.modalities.text import MODALITY, TextSettings

WIDTH = 16


class _Of(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tensors: Tensors) -> torch.Tensor:
        features: torch.Tensor = self.net(tensors["ids"])
        return features


@pytest.mark.parametrize("kind", ["bag", "transformer", "gru"])
def test_attributions_are_complete_for_every_encoder(kind: TextEncoderKind) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(50, 12, WIDTH, kind)
    nn.init.normal_(encoder.embed.weight)
    if encoder.sequence is not None:
        nn.init.normal_(encoder.project.weight, std=0.3)
    model = classifier({"a": _Of(encoder)}, WIDTH)
    ids = torch.tensor([[3, 7, 7, 20, 49, 0, 0, 0, 0, 0, 0, 0]])
    before = encoder.embed.weight.clone()
    found = attribute_tokens(
        bundle_of(model), {"a": {"ids": ids}}, torch.ones(1, 1, dtype=torch.bool), 1, "a"
    )
    assert found is not None and len(found.tokens) == 5
    assert abs(found.gap) <= 0.002 < abs(found.total)
    assert found.tokens[1] == found.tokens[2]
    assert (encoder.embed.weight == before).all() and encoder.embed.weight.grad is None


def test_the_words_of_the_class_speak_for_it(trained: Bundle, tiny_dataset: str) -> None:
    seen = train_sample(trained, tiny_dataset, 24)
    batch = transform(trained.specs, seen.batch, augment=False)
    spec = trained.specs[1]
    labels = seen.probabilities.argmax(axis=1)
    for row in np.flatnonzero(seen.present[:, 1])[:6].tolist():
        one = batch.slice(row, row + 1)
        found = attribute_tokens(trained, one.inputs, one.present, int(labels[row]), spec.name)
        assert found is not None and abs(found.gap) <= 0.002
        caption = seen.table.column("caption")[row].as_py()
        words = merge_words(spec.modality.words(spec.settings, spec.fitted, [caption]), found.tokens)
        assert words is not None and [word for word, _ in words] == caption.split()
        assert sum(value or 0.0 for _, value in words) == pytest.approx(found.tokens.sum())
        if trained.classes[labels[row]] == seen.table.column("label")[row].as_py():
            assert found.total > 0


def test_what_has_no_embedding_or_no_tokens_has_no_attribution() -> None:
    encoder = nn.Embedding(5, WIDTH)
    model = classifier({"a": _Of(nn.Sequential(encoder, nn.Flatten(), nn.Linear(2 * WIDTH, WIDTH)))}, WIDTH)
    present = torch.ones(1, 1, dtype=torch.bool)
    assert (
        attribute_tokens(
            bundle_of(model), {"a": {"ids": torch.zeros(1, 2, dtype=torch.int64)}}, present, 0, "a"
        )
        is None
    )
    plain = classifier({"a": _Of(nn.Linear(2, WIDTH))}, WIDTH)
    assert attribute_tokens(bundle_of(plain), {"a": {"ids": torch.ones(1, 2)}}, present, 0, "a") is None


def test_words_that_are_not_of_these_tokens_are_refused() -> None:
    tokens = np.array([1.0, 2.0, 4.0])
    assert merge_words([("a", 2), ("", 0), ("b", 1)], tokens) == [("a", 3.0), ("", None), ("b", 4.0)]
    assert merge_words([("a", 2)], tokens) is None


@given(st.lists(st.lists(st.text(max_size=12) | st.none(), min_size=2, max_size=2), min_size=1, max_size=4))
def test_words_have_all_tokens_of_a_record(records: list[list[str | None]]) -> None:
    settings = TextSettings(max_tokens=8)
    table = pa.table({name: pa.array([r[i] for r in records], pa.string()) for i, name in enumerate("ab")})
    fitted = MODALITY.fit(settings, table)
    ids = MODALITY.decode(settings, fitted, [c.combine_chunks() for c in table.columns], None).arrays["ids"]
    for row, values in zip(ids, records, strict=True):
        words = MODALITY.words(settings, fitted, values)
        assert sum(count for _, count in words) == np.count_nonzero(row)
        assert "".join(word for word, _ in words) == "".join("".join(v.split()) for v in values if v)
