"""Stacking (Wolpert 1992): logistic regression on what models of single fields say of records they had not seen.

Its features are the scores of each member, standardised, with 0 where a record lacks the member's field, and one flag
for every field that some record of the train split lacks. It is fitted on the train split alone, to the scores of
models that were fitted to the other folds; the validation split decides how strongly it is held back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xmodal_dist.baselines.models import LOWEST_LOG, STACKER, Best, FieldModel, Scores, fit_best, scores_of

__all__ = ["NUM_FOLDS", "Masks", "Scaling", "Stack", "fit_stack", "stratified_folds"]

NUM_FOLDS = 5
_SEED = 0

Masks = Mapping[str, NDArray[np.bool_]]
"""Per field, [n] which records have it."""


class Scaling(NamedTuple):
    """How scores become features: ``mean`` and ``deviation`` [C] of each member, and the fields that get a flag."""

    fields: tuple[str, ...]
    mean: tuple[NDArray[np.float64], ...]
    deviation: tuple[NDArray[np.float64], ...]
    flagged: tuple[str, ...]

    def features(self, scores: Sequence[Scores], present: Masks) -> NDArray[np.float64]:
        """[n, D] from the scores of each member."""
        parts = [
            np.where(present[field][:, None], (np.maximum(own, LOWEST_LOG) - mean) / deviation, 0.0)
            for field, own, mean, deviation in zip(
                self.fields, scores, self.mean, self.deviation, strict=True
            )
        ]
        flags = [present[field][:, None].astype(np.float64) for field in self.flagged]
        return np.concatenate([*parts, *flags], axis=1)


class Stack(NamedTuple):
    """A fitted stack.

    Attributes:
        name: names it in results.
        title: names it in sentences.
        members: the models of its fields.
        scaling: what its features are made with.
        best: the logistic regression and its settings.
        fit_cpu_s: CPU-seconds of its own and of all its members, folds included.
    """

    name: str
    title: str
    members: tuple[FieldModel, ...]
    scaling: Scaling
    best: Best
    fit_cpu_s: float

    def predict(self, scores: Sequence[Scores], present: Masks) -> NDArray[np.int64]:
        """[n] class index, from the scores of each member."""
        features = self.scaling.features(scores, present)
        predicted: NDArray[np.int64] = scores_of(self.best.fitted, features, scores[0].shape[1]).argmax(
            axis=1
        )
        return predicted


def stratified_folds(labels: NDArray[np.int64], num_folds: int = NUM_FOLDS) -> NDArray[np.int64]:
    """[n] fold of each record: random, always the same, and every class spread evenly over the folds."""
    order = np.random.default_rng(_SEED).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[by_class] = np.arange(len(labels)) % num_folds
    return folds


def fit_stack(
    name: str,
    title: str,
    members: Sequence[FieldModel],
    train: tuple[NDArray[np.int64], Masks],
    val: tuple[NDArray[np.int64], Masks] | None,
) -> Stack:
    """Fit a stack.

    Args:
        name: names it in results.
        title: names it in sentences.
        members: models of different fields, at least one.
        train: [n] class index of the train split, and which of its records have what.
        val: the same of the validation split, if there is one.
    """
    began = time.process_time()
    labels, present = train
    seen = [np.maximum(m.out_of_fold, LOWEST_LOG)[present[m.field]] for m in members]
    scaling = Scaling(
        fields=tuple(m.field for m in members),
        mean=tuple(scores.mean(axis=0) for scores in seen),
        deviation=tuple(np.maximum(scores.std(axis=0), 1e-6) for scores in seen),
        flagged=tuple(m.field for m in members if not present[m.field].all()),
    )
    val_scores = [m.val_scores for m in members if m.val_scores is not None]
    val_features = scaling.features(val_scores, val[1]) if val is not None else None

    def scores(fitted: Any) -> Scores | None:
        return None if val_features is None else scores_of(fitted, val_features, len(members[0].without))

    features = scaling.features([m.out_of_fold for m in members], present)
    best = fit_best(STACKER, features, labels, scores, None if val is None else val[0])
    own_cpu_s = time.process_time() - began
    cpu_s = own_cpu_s + sum(m.fit_cpu_s + m.fold_cpu_s for m in members)
    return Stack(name, title, tuple(members), scaling, best, cpu_s)
