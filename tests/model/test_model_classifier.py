"""The classifier: rows are independent, what is missing has no say, and every parameter learns at every step."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders import Evidence
from xmodal_dist.model.classifier import CrossModalClassifier, ModelSettings
from xmodal_dist.model.fusion import FusionKind

FUSIONS = get_args(FusionKind)
NUM_CLASSES, WIDTH = 4, 16


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, WIDTH)

    def forward(self, tensors: Tensors) -> torch.Tensor:
        features: torch.Tensor = self.linear(tensors["x"])
        return features


def _model(fusion: str) -> CrossModalClassifier:
    torch.manual_seed(0)
    settings_ = ModelSettings.model_validate({"fusion": fusion, "width": WIDTH, "modality_dropout": 0.4})
    return CrossModalClassifier({name: _Encoder() for name in "abc"}, NUM_CLASSES, settings_)


def _batch(rows: int, seed: int = 0) -> tuple[dict[str, Tensors], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: {"x": torch.randn(rows, 5, generator=generator)} for name in "abc"}
    present = torch.rand(rows, 3, generator=generator) > 0.4
    keys = torch.randint(-(2**62), 2**62, (rows,), generator=generator)
    return inputs, present, keys


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_is_missing_has_no_say(fusion: str) -> None:
    model = _model(fusion).eval()
    inputs, present, _ = _batch(40)
    other = {name: {"x": t["x"] + 100 * (~present[:, [i]])} for i, (name, t) in enumerate(inputs.items())}
    assert torch.equal(model(inputs, present).fused, model(other, present).fused)


class _Sum(Evidence):
    def forward(self, tensors: Tensors) -> torch.Tensor:
        return tensors["x"].repeat(1, 4)[:, :WIDTH]


def test_twice_the_evidence_counts_twice_and_the_scale_of_other_features_does_not() -> None:
    model = CrossModalClassifier(
        {"a": _Sum(), "b": _Encoder()}, NUM_CLASSES, ModelSettings(width=WIDTH)
    ).eval()
    nn.init.zeros_(model.encoders["b"].linear.bias)  # type: ignore[arg-type]
    x, present = torch.randn(6, 5), torch.ones(6, 2, dtype=torch.bool)
    once, twice = (model.encode({name: {"x": k * x} for name in "ab"}, present) for k in (1, 2))
    torch.testing.assert_close(twice[:, 0], 2 * once[:, 0])
    torch.testing.assert_close(twice[:, 1], once[:, 1], rtol=1e-3, atol=1e-3)


def test_what_a_record_lacks_informs_but_what_is_left_out_does_not() -> None:
    model = _model("late").eval()
    assert model.absence is not None
    nn.init.normal_(model.absence.weight)
    inputs, present, _ = _batch(20)
    features = model.encode(inputs, present)
    left_out = model.fuse(features, present)
    expected = left_out + model.absence((~present).float())
    assert torch.allclose(model(inputs, present).fused, expected, atol=1e-6)
    assert torch.equal(model.fuse(features, present, missing=torch.zeros_like(present)), left_out)


def test_a_class_that_only_what_is_missing_tells_is_learned_if_asked_for() -> None:
    inputs, present, _ = _batch(200)
    present[:, 0] = True
    labels = present[:, 1].long()
    right = {}
    for informs in (True, False):
        torch.manual_seed(0)
        model = CrossModalClassifier(
            {name: _Encoder() for name in "abc"},
            NUM_CLASSES,
            ModelSettings(width=WIDTH, modality_dropout=0.0, absence_informs=informs),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        # Of field b, whose being there tells the class, the values are hidden.
        shown = present & torch.tensor([True, False, True])
        for _ in range(60):
            logits = model.fuse(model.encode(inputs, shown), shown, missing=~present)
            nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        right[informs] = float((logits.argmax(dim=1) == labels).float().mean())
    assert right[True] == 1.0 and right[False] < 0.9


def test_encoders_see_only_the_rows_that_have_their_field() -> None:
    model = _model("late")
    inputs, present, keys = _batch(40)
    present[:, 0], present[:, 1] = True, False
    seen: dict[str, int] = {}
    for name, encoder in model.encoders.items():
        encoder.register_forward_hook(lambda _, args, __, name=name: seen.update({name: len(args[0]["x"])}))
    model(inputs, present, keys)
    assert seen == {"a": 40, "b": 1, "c": int(present[:, 2].sum())}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_is_hidden_has_no_say_either(fusion: str) -> None:
    model = _model(fusion).eval()
    inputs, present, _ = _batch(20)
    features = model.encode(inputs, torch.ones_like(present))
    logits = model.field_logits(features)
    for mask in (torch.zeros(3, dtype=torch.bool), torch.tensor([False, True, False])):
        shown = present & mask
        alone = model(inputs, shown).fused
        assert torch.allclose(model.fuse(features, shown, field_logits=logits), alone, atol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_record_with_nothing_still_gets_finite_logits(fusion: str) -> None:
    inputs, present, _ = _batch(3)
    logits = _model(fusion).eval()(inputs, torch.zeros_like(present)).fused
    assert torch.isfinite(logits).all() and torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_logits_are_made_from_the_embedding(fusion: str) -> None:
    model = _model(fusion).eval()
    inputs, present, _ = _batch(30)
    present[0] = False
    features = model.encode(inputs, present)
    embedding = model.embed(features, present)
    assert embedding.shape == (30, model.fusion.embedding_width)
    logits = model.fuse(features, present)
    if fusion == "late":
        # Heads differ by field there; with one and the same for all, the logits are its view of the embedding as often
        # as there are fields, but for a constant of each row.
        for head in model.heads:
            head.load_state_dict(model.heads[0].state_dict())
        logits = model.fuse(features, present).log_softmax(dim=1)
        expected = (model.heads[0](embedding) * present.sum(dim=1, keepdim=True)).log_softmax(dim=1)
    else:
        expected = model.fusion.output(embedding)
    assert torch.allclose(expected, logits, atol=1e-5)
    hidden = torch.where(present.unsqueeze(-1), features, torch.full_like(features, 1e3))
    assert torch.equal(model.embed(hidden, present), embedding), "what is missing has no say"


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("training", [True, False])
def test_a_row_does_not_depend_on_its_batch(fusion: str, training: bool) -> None:
    model = _model(fusion).train(training)
    inputs, present, keys = _batch(12)
    whole = model(inputs, present, keys).fused
    for row in range(12):
        one = {name: {"x": t["x"][[row]]} for name, t in inputs.items()}
        assert torch.allclose(model(one, present[[row]], keys[[row]]).fused[0], whole[row], atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("missing", ["none", "all", "one field everywhere"])
def test_every_parameter_gets_a_gradient_whatever_is_missing(fusion: str, missing: str) -> None:
    model = _model(fusion).train()
    inputs, present, keys = _batch(6)
    present = torch.full_like(present, missing == "none")
    if missing == "one field everywhere":
        present[:, 1:] = True
    output = model(inputs, present, keys)
    (output.fused.sum() + 0.0 * output.field_logits.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 40))
def test_modality_dropout_only_hides_and_leaves_each_record_something(seed: int, rows: int) -> None:
    model = _model("gated").train()
    _, present, keys = _batch(rows, seed)
    shown = model.drop_modalities(present, keys)
    assert not (shown & ~present).any()
    assert torch.equal(shown.any(dim=1), present.any(dim=1))
    assert torch.equal(model.drop_modalities(present, keys), shown)
    assert torch.equal(model.eval().drop_modalities(present, keys), present)


def test_modality_dropout_hides_about_as_often_as_asked() -> None:
    model = _model("gated").train()
    _, _, keys = _batch(4000)
    present = torch.ones(4000, 3, dtype=torch.bool)
    hidden = (~model.drop_modalities(present, keys)).float().mean().item()
    assert 0.3 < hidden < 0.42
