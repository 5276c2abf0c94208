"""Models of single fields and their stacks: fitted to the train split alone, and with an answer for every record."""

from __future__ import annotations

import numpy as np
import pytest

from xmodal_dist.baselines.fit import fit_classical
from xmodal_dist.baselines.models import BASELINES, Split, fit_field_model, named
from xmodal_dist.baselines.rows import Rows
from xmodal_dist.baselines.stack import fit_stack, stratified_folds
from xmodal_dist.baselines.views import prepare
from xmodal_dist.errors import UsageError
from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.modalities.tabular import TabularSettings

WORDS = np.array(["warm sunset", "leaf forest", "ocean sky"], dtype=object)


def _numbers(labels, rng, noise=0.3):
    return {"numbers": (np.eye(3)[labels] + rng.normal(0, noise, (len(labels), 3))).astype(np.float32)}


def _texts(labels, rng):
    return {"texts": np.array([f"{WORDS[c]} {rng.integers(99)}" for c in labels], dtype=object)}


def _counts(labels, rng):
    return {"shares": np.clip(np.eye(3)[labels] + rng.random((len(labels), 3)) / 2, 0, 2)}


@pytest.mark.parametrize("make", [_numbers, _texts, _counts])
@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_every_baseline_learns_and_answers_for_records_without_the_field(baseline, make):
    rng = np.random.default_rng(3)
    labels, present = rng.integers(0, 3, 90), rng.random(90) > 0.2
    labels[~present] = 1  # those that lack it are of class 1
    own = make(labels[present], rng)
    preparation = prepare(own)
    views = preparation.views(own)
    if getattr(views, baseline.view) is None:
        assert make is _numbers and baseline.name == "multinomial_nb"
        return
    val = Split(preparation.views(make(np.arange(30) % 3, rng)), np.arange(30) % 3, np.ones(30, dtype=bool))
    model = fit_field_model(
        baseline, "field", Split(views, labels, present), val, stratified_folds(labels), 4
    )
    assert model.val_accuracy is not None and model.val_accuracy > 0.85
    assert model.choice in baseline.grid
    asked = np.array([True, False, True, False])
    scores = model.scores(preparation.views(make(np.array([2, 0]), rng)), asked)
    assert scores.shape == (4, 4) and scores.argmax(axis=1).tolist() == [2, 1, 0, 1]
    assert model.scores(None, np.zeros(2, dtype=bool)).argmax(axis=1).tolist() == [1, 1]
    hits = model.out_of_fold.argmax(axis=1) == labels
    assert hits[present].mean() > 0.8 and hits[~present].all()


def test_scores_out_of_fold_know_nothing_of_their_own_record():
    """Labels drawn by lot can be learnt by heart, and not be foretold."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 150)
    own = {"numbers": rng.normal(size=(150, 60)).astype(np.float32)}
    (svm,) = named(["rbf_svm"])
    split = Split(prepare(own).views(own), labels, np.ones(150, dtype=bool))
    model = fit_field_model(svm, "noise", split, None, stratified_folds(labels), 3)
    assert (model.scores(split.views, split.present).argmax(axis=1) == labels).mean() > 0.9
    assert (model.out_of_fold.argmax(axis=1) == labels).mean() < 0.5
    assert model.val_accuracy is None and model.choice == svm.grid[0]


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_a_class_of_one_record_and_a_field_of_one_class(baseline):
    rng = np.random.default_rng(1)
    folds = np.arange(121) % 5
    for labels in (np.array([0, 1] * 60 + [2]), np.full(121, 1)):
        own = _counts(labels, rng)
        split = Split(prepare(own).views(own), labels, np.ones(121, dtype=bool))
        model = fit_field_model(baseline, "field", split, None, folds, 3)
        predicted = model.scores(split.views, split.present).argmax(axis=1)
        assert (predicted == labels).mean() > 0.9
        assert ("one class" in model.note) == (len(set(labels)) == 1)


def test_folds_hold_each_class_evenly():
    labels = np.random.default_rng(2).choice(4, 203, p=[0.5, 0.3, 0.17, 0.03])
    folds = stratified_folds(labels)
    assert folds.tolist() == stratified_folds(labels).tolist()
    for c in range(4):
        counts = np.bincount(folds[labels == c], minlength=5)
        assert counts.max() - counts.min() <= 1


def _rows(labels, rng, missing):
    present = {"a": rng.random(len(labels)) > missing, "b": rng.random(len(labels)) > missing}
    fields = {"a": _numbers(labels % 2 * 2, rng), "b": _texts(np.minimum(labels, 1), rng)}
    return Rows([str(i) for i in range(len(labels))], labels, present, fields, 0)


def _spec(name):
    return FieldSpec(name, (name,), TabularSettings(), Fitted())


@pytest.mark.parametrize("missing", [0.0, 0.15])
def test_a_stack_joins_what_no_field_tells_alone(missing):
    rng = np.random.default_rng(8)
    train, val, test = (_rows(rng.integers(0, 3, n), rng, missing) for n in (240, 60, 200))
    # Field a tells class 1 from the others, field b class 0 from the others.
    baselines = named(["linear_svm", "logistic_regression", "multinomial_nb"])
    fitted = fit_classical([_spec("a"), _spec("b")], train, val, baselines, 3, lambda text: None)
    right = {name: (predicted == test.labels).mean() for name, predicted in fitted.predict(test).items()}
    whole = np.logical_and(*test.present.values())
    for name in ("linear_svm:stack", "logistic_regression:stack", "best:stack"):
        predicted = fitted.predict(test)[name]
        assert (predicted == test.labels)[whole].mean() > 0.95
        assert right[name] > max(right["linear_svm:a"], right["linear_svm:b"]) + 0.1
    assert "multinomial_nb:stack" not in right, "of one field nothing can be stacked"
    assert fitted.skipped == [
        {"model": "multinomial_nb", "field": "a", "reason": "its features can be negative"}
    ]
    (stack,) = (s for s in fitted.stacks if s.name == "linear_svm:stack")
    assert stack.scaling.flagged == (("a", "b") if missing else ())
    assert stack.fit_cpu_s >= sum(m.fit_cpu_s + m.fold_cpu_s for m in stack.members)


def test_a_field_that_no_record_of_the_train_split_has_is_left_out_and_told():
    rng = np.random.default_rng(8)
    train, val = _rows(np.arange(60) % 3, rng, 0.0), _rows(np.arange(30) % 3, rng, 0.0)
    train.present["a"][:] = False
    val.present["b"][:] = False
    fitted = fit_classical([_spec("a"), _spec("b")], train, val, named(["gaussian_nb"]), 3, lambda text: None)
    assert [m.name for m in fitted.models] == ["gaussian_nb:b"] and not fitted.stacks
    assert fitted.skipped[0]["reason"] == "no record of the train split has the field"
    assert list(fitted.predict(val)) == ["gaussian_nb:b"]


def test_stack_of_one_class_is_that_class():
    rng = np.random.default_rng(8)
    labels, everywhere = np.full(20, 1), np.ones(20, dtype=bool)
    own = _counts(labels, rng)
    split = Split(prepare(own).views(own), labels, everywhere)
    model = fit_field_model(named(["gaussian_nb"])[0], "a", split, None, np.zeros(20, dtype=np.int64), 3)
    stack = fit_stack("s", "the stack", [model], (labels, {"a": everywhere}), None)
    assert stack.predict([model.scores(split.views, everywhere)], {"a": everywhere}).tolist() == [1] * 20


def test_signs_alone_and_many_terms_make_texts():
    texts = np.array(["!", "? ?", "\N{GRINNING FACE}", "word"], dtype=object)
    views = prepare({"texts": texts}).views({"texts": texts})
    assert views.linear.shape[0] == views.dense.shape[0] == 4
    assert views.counts is not None and (np.asarray(views.counts.sum(axis=1)) > 0).all()
    assert np.isfinite(views.dense).all()


def test_unknown_baselines_are_named():
    assert [b.name for b in named(["rbf_svm"])] == ["rbf_svm"] and named([]) == BASELINES
    with pytest.raises(UsageError, match="there is no 'svm'; known are linear_svm, rbf_svm"):
        named(["svm"])
