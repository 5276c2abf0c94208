from __future__ import annotations

import copy
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from xmodal_dist.calibrate import softmax
from xmodal_dist.model.classifier import CrossModalClassifier, ModelSettings
from xmodal_dist.model.fusion import FusionKind
from xmodal_dist.model.losses import classification_loss, outcome_weights
from xmodal_dist.model.mixup import Shares
from xmodal_dist.task import MULTICLASS, MULTILABEL, task_of

CLASSES = pa.array(["a", "b", "c"], pa.string())
label_sets = st.lists(st.one_of(st.none(), st.sets(st.sampled_from("abc"))), max_size=30)


def _column(labels: list[set[str] | None]) -> pa.Array:
    return pa.array([None if s is None else sorted(s) for s in labels], MULTILABEL.label_type)


@given(label_sets, st.integers(0, 5))
def test_multi_hot_targets_name_the_classes_of_the_label(labels: list[set[str] | None], start: int) -> None:
    column = _column(labels).slice(start)
    hot = MULTILABEL.targets(pa.chunked_array([column[:2], column[2:]]), CLASSES)
    assert hot.dtype == np.int8 and hot.shape == (len(column), 3)
    for row, label in zip(hot, labels[start:], strict=True):
        named = None if row[0] < 0 else {c for c, there in zip("abc", row, strict=True) if there}
        assert named == label
    assert MULTILABEL.labelled(hot).tolist() == [label is not None for label in labels[start:]]
    assert MULTILABEL.labelled(torch.from_numpy(hot)).tolist() == MULTILABEL.labelled(hot).tolist()


def test_a_class_that_nobody_knows_is_no_label() -> None:
    column = pa.array([["a", "z"], ["b"]], MULTILABEL.label_type)
    assert MULTILABEL.targets(column, CLASSES).tolist() == [[-1, -1, -1], [0, 1, 0]]
    assert MULTICLASS.targets(pa.array(["c", "z", None]), CLASSES).tolist() == [2, -1, -1]


def test_there_is_one_object_of_each_task() -> None:
    for task in (MULTICLASS, MULTILABEL):
        assert task_of(task.name) is task
        assert pickle.loads(pickle.dumps(task)) is task and copy.deepcopy(task) is task


def _some(rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 3, generator=generator) * 3
    return logits, (torch.rand(rows, 3, generator=generator) < 0.3).to(torch.int8)


def test_the_loss_is_torchs_binary_cross_entropy_summed_over_classes() -> None:
    logits, hot = _some()
    plain = F.binary_cross_entropy_with_logits(logits, hot.float(), reduction="none").sum(dim=1)
    assert torch.allclose(MULTILABEL.losses(logits, hot), plain, atol=1e-6)
    smooth = F.binary_cross_entropy_with_logits(logits, hot * 0.8 + 0.1, reduction="none").sum(dim=1)
    assert torch.allclose(MULTILABEL.losses(logits, hot, label_smoothing=0.2), smooth, atol=1e-5)
    balanced = outcome_weights([4, 6, 3], 12, balanced=True, beta=None)
    assert balanced is not None and balanced[1] == pytest.approx([2.0, 1.0, 3.0])
    weighted = F.binary_cross_entropy_with_logits(
        logits, hot.float(), pos_weight=torch.tensor(balanced[1]), reduction="none"
    ).sum(dim=1)
    assert torch.allclose(
        MULTILABEL.losses(logits, hot, outcome_weights=torch.tensor(balanced)), weighted, atol=1e-5
    )


def test_class_balanced_weighs_both_outcomes_of_a_class_and_nothing_asked_weighs_none() -> None:
    found = outcome_weights([1, 100], 200, balanced=False, beta=0.99)
    assert found is not None and found[0] == found[1]
    assert found[0][0] > 1 > found[0][1] and sum(found[0]) == pytest.approx(2)
    assert outcome_weights([1, 100], 200, balanced=False, beta=None) is None


def test_focal_loss_gives_less_to_what_is_right_already() -> None:
    logits, hot = _some()
    p = torch.where(hot > 0, logits.sigmoid(), 1 - logits.sigmoid())
    expected = (-(1 - p).pow(2) * p.log()).sum(dim=1)
    assert torch.allclose(MULTILABEL.losses(logits, hot, focal_gamma=2.0), expected, atol=1e-4)
    sure = torch.tensor([[40.0, -40.0, 0.0]], requires_grad=True)
    MULTILABEL.losses(sure, torch.tensor([[1, 0, 1]]), focal_gamma=0.3).sum().backward()
    assert sure.grad is not None and torch.isfinite(sure.grad).all()


def test_mixup_mixes_the_targets() -> None:
    logits, hot = _some(4)
    share = torch.tensor([0.7, 0.7, 0.9, 0.9])
    found = classification_loss(
        logits, logits[:, None], torch.ones(4, 1, dtype=torch.bool), hot, torch.ones(4),
        shares=Shares(share, share[:, None]), aux_weight=0.5, task=MULTILABEL,
    )  # fmt: skip
    mixed = share[:, None] * hot + (1 - share[:, None]) * hot[[1, 0, 3, 2]]
    expected = F.binary_cross_entropy_with_logits(logits, mixed, reduction="sum")
    assert found.fused.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.total.item() == pytest.approx(1.5 * expected.item(), rel=1e-5)


def test_padding_has_no_loss_whatever_its_target() -> None:
    logits, hot = _some(4)
    weights = torch.tensor([1.0, 1.0, 0.0, 0.0])
    padded = torch.cat([hot[:2], torch.full((2, 3), -1, dtype=torch.int8)])
    present = torch.ones(4, 2, dtype=torch.bool)
    fields = torch.stack([logits, -logits], dim=1)
    whole, alone = (
        classification_loss(a, b, c, d, e, aux_weight=0.5, task=MULTILABEL)
        for a, b, c, d, e in (
            (logits, fields, present, padded, weights),
            (logits[:2], fields[:2], present[:2], hot[:2], weights[:2]),
        )
    )
    assert torch.allclose(whole.total, alone.total) and whole.weight == 2


def test_choices_between_two_are_what_the_sigmoid_says() -> None:
    logits, hot = (values.numpy() for values in _some())
    pairs, chosen = MULTILABEL.choices(logits, hot)
    probabilities = softmax(pairs, 1.7)
    confidence, correct = MULTILABEL.claims(probabilities, chosen)
    expected = MULTILABEL.probabilities(torch.from_numpy(logits) / 1.7).numpy()
    assert np.allclose(confidence.reshape(hot.shape), expected, atol=1e-6)
    assert (correct.reshape(hot.shape) == (hot > 0)).all()


def test_truth_probability_is_the_mean_over_the_classes_that_a_row_has() -> None:
    logits = torch.tensor([[[2.0, -1.0, 0.0]], [[5.0, 5.0, 5.0]], [[1.0, 1.0, 1.0]]])
    hot = torch.tensor([[1, 1, 0], [0, 0, 0], [-1, -1, -1]])
    found, counted = MULTILABEL.truth_probability(logits, hot)
    assert counted.tolist() == [True, False, False]
    assert found[0, 0].item() == pytest.approx((torch.tensor([2.0, -1.0]).sigmoid().mean()).item())


@pytest.mark.parametrize("fusion", ["late", "concat", "gated", "lowrank", "attention"])
def test_a_model_that_starts_from_logits_says_about_them(fusion: FusionKind) -> None:
    torch.manual_seed(0)
    encoders = {name: _Encoder(nn.Linear(4, 16)) for name in ("x", "y")}
    model = CrossModalClassifier(encoders, 3, ModelSettings(width=16, fusion=fusion)).eval()
    model.start_from(torch.tensor([-6.0, 0.0, 6.0]))
    inputs = {name: {"v": torch.randn(5, 4)} for name in encoders}
    said = model(inputs, torch.tensor([[True, True]] * 4 + [[False, False]]))
    for logits in (said.fused, *said.field_logits.unbind(1)):
        assert (logits[:, 2] > logits[:, 1]).all() and (logits[:, 1] > logits[:, 0]).all()


class _Encoder(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.layer(tensors["v"])
