"""Evidence: the error of a difference on the same records, whatever the figure, and what chance alone gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xmodal_dist.multilabel import mean_average_precision
from xmodal_dist.task import MULTICLASS, MULTILABEL, Task
from xmodal_dist.train.calibration import Observed
from xmodal_dist.tune.choice import Choice, Evidence, choose, own_rival
from xmodal_dist.tune.evidence import weigh
from xmodal_dist.tune.ledger import TrialRecord
from xmodal_dist.tune.settings import Metric

ROWS, CLASSES = 400, 3


def _said(logits: NDArray[Any], truth: NDArray[Any], ids: NDArray[np.int64] | None = None) -> Observed:
    ids = np.arange(len(truth)) if ids is None else ids
    return Observed(ids, truth, np.ones((len(truth), 1), np.bool_), logits[:, None].astype(np.float32))


def _choice(*trials: int) -> Choice:
    return Choice(tuple(TrialRecord(t, "finished", "", {}) for t in trials), 0.0, None)


def _weigh(best: Observed, own: Observed, metric: Metric, task: Task = MULTICLASS) -> Evidence:
    return weigh(_choice(1), _choice(0), {0: own, 1: best}, metric, task)


def _models(
    rng: np.random.Generator, skills: tuple[float, float], rows: int = ROWS
) -> tuple[Observed, Observed]:
    """Two that know so much of the truth; most of what they get wrong is the record's fault."""
    truth = rng.integers(CLASSES, size=rows)
    shared = rng.normal(size=(rows, CLASSES)) * 2
    first, second = (
        _said(np.eye(CLASSES)[truth] * skill + shared + rng.normal(size=(rows, CLASSES)) / 2, truth)
        for skill in skills
    )
    return first, second


def test_the_error_is_that_of_the_difference_and_not_that_of_the_figures() -> None:
    best, own = _models(np.random.default_rng(0), (3.0, 2.0))
    rights = [said.logits[:, 0].argmax(axis=1) == said.truth for said in (best, own)]
    difference = rights[0].astype(np.float64) - rights[1]
    found = _weigh(best, own, "accuracy")
    assert found.trial == 1 and found.gain == pytest.approx(difference.mean())
    assert found.error == pytest.approx(difference.std() / ROWS**0.5, rel=0.25)
    assert found.error < 0.7 * rights[1].std() / ROWS**0.5
    losses = [
        np.log(np.exp(s.logits[:, 0]).sum(axis=1)) - s.logits[np.arange(ROWS), 0, s.truth]
        for s in (own, best)
    ]
    found = _weigh(best, own, "loss")
    assert found.gain == pytest.approx((losses[0] - losses[1]).mean(), rel=1e-4)
    assert found.error == pytest.approx((losses[0] - losses[1]).std() / ROWS**0.5, rel=0.25)


def test_of_figures_that_are_no_mean_it_is_what_other_records_would_have_given() -> None:
    def pair(rng: np.random.Generator) -> tuple[Observed, Observed]:
        truth = (rng.random((ROWS, CLASSES)) < 0.2).astype(np.int8)
        shared = rng.normal(size=truth.shape)
        first, second = (
            _said(truth * skill + shared + rng.normal(size=truth.shape) - 1.5, truth) for skill in (2.0, 1.8)
        )
        return first, second

    many = [pair(np.random.default_rng(seed)) for seed in range(60)]
    gains = [
        mean_average_precision(a.truth, a.logits[:, 0]) - mean_average_precision(b.truth, b.logits[:, 0])
        for a, b in many
    ]
    errors = [_weigh(a, b, "mean_average_precision", MULTILABEL).error for a, b in many[:10]]
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.3)


@pytest.mark.parametrize("metric", ["calibrated_loss", "macro_f1"])
def test_equals_are_told_apart_one_time_in_twenty_and_better_ones_nearly_always(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    equal = [_weigh(*_models(rng, (2.0, 2.0), 200), metric).is_better for _ in range(60)]
    assert sum(equal) <= 9, "3 are expected; more than 9 in one case of 900"
    better = [_weigh(*_models(rng, (3.0, 2.0), 400), metric).is_better for _ in range(10)]
    assert sum(better) >= 9


def test_one_mistake_less_is_no_evidence_and_five_are() -> None:
    truth = np.arange(300) % CLASSES
    perfect = np.eye(CLASSES)[truth] * 12.0
    for mistakes, is_better in ((1, False), (5, True)):
        mistaken = perfect.copy()
        mistaken[:mistakes] = np.roll(perfect[:mistakes], 1, axis=1)
        for metric in ("calibrated_loss", "accuracy"):
            found = _weigh(_said(perfect, truth), _said(mistaken, truth), metric)  # type: ignore[arg-type]
            assert found.gain > 0 and found.is_better is is_better


def test_seeds_count_by_their_mean_and_only_records_that_all_have_seen() -> None:
    rng = np.random.default_rng(1)
    (first, own), (second, _) = _models(rng, (3.0, 2.0)), _models(rng, (3.0, 2.0))
    second = second._replace(truth=first.truth)
    part = Observed(*(values[50:] for values in own))
    said = {0: part, 1: first, 2: second}
    found = weigh(_choice(1, 2), _choice(0), said, "accuracy", MULTICLASS)
    accuracy = [(s.logits[50:, 0].argmax(axis=1) == s.truth[50:]).mean() for s in (first, second, own)]
    assert found.gain == pytest.approx((accuracy[0] + accuracy[1]) / 2 - accuracy[2])
    nothing = Observed(*(values[:1] for values in own))
    assert not _weigh(first, nothing, "accuracy").is_better


def test_only_the_settings_of_the_run_are_kept_where_chance_may_have_decided() -> None:
    def records(own: float, other: float) -> list[TrialRecord]:
        return [
            TrialRecord(number, "finished", "", {}, {"accuracy": value, "parameters": value})
            for number, value in enumerate((own, other, 0.1))
        ]

    behind = own_rival(choose(records(0.8, 0.9), ["accuracy"]), "accuracy")
    assert behind is not None and behind.is_own and behind.mean == 0.8
    assert own_rival(choose(records(0.9, 0.8), ["accuracy"]), "accuracy") is None
    assert own_rival(choose(records(0.9, 0.8), ["parameters"]), "parameters") is None
    assert own_rival(choose(records(0.8, 0.9)[1:], ["accuracy"]), "accuracy") is None
