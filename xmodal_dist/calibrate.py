"""Probabilities that mean what they say: a temperature for each subset of fields, and thresholds to abstain below.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks"): probabilities are softmax(logits/T),
where T minimises the log loss of records that the model was not trained on. The most probable class stays what it was.
A model that sees one field of five is sure in another way than one that sees all, so each subset has a T of its own.

Few records would let T run away (without an error, to 0). So :data:`PRIOR_ROWS` more are imagined, whose classes are
drawn as a prior temperature says: for a subset, the T of all subsets together; for that one, 1. The loss stays convex
in 1/T, and a subset that was never seen takes its prior.

Of multilabel, each class is a choice between two, and a record makes C such choices: a sigmoid is a softmax of two.
Instead of thresholds to abstain below, each class gets the probability from which on it is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xmodal_dist import metrics, multilabel
from xmodal_dist.errors import CheckpointError, DataError, UsageError
from xmodal_dist.task import MULTICLASS, Task

__all__ = [
    "CONFIDENCE_LEVEL",
    "NOTHING",
    "PRIOR_ROWS",
    "Calibration",
    "Cutoff",
    "SubsetFit",
    "cutoffs",
    "fit_calibration",
    "fit_temperature",
    "precision_bound",
    "softmax",
]

NOTHING = "(none)"
"""Name of the subset without any field, beside ``image+text`` and the like."""
PRIOR_ROWS = 20.0
"""Imagined records that pull a temperature towards its prior."""
CONFIDENCE_LEVEL = 0.95
"""With which the precision above a threshold is at least its bound."""

_VERSION = 1
_COLDEST, _HOTTEST = 0.05, 20.0
_MAX_STEPS = 100
_MAX_CUTOFFS = 200
_RESOLUTION = 1e6

_Floats = NDArray[np.floating[Any]]
_Ints = NDArray[np.integer[Any]]
_Bools = NDArray[np.bool_]


class Cutoff(NamedTuple):
    """A threshold: so many records have a confidence of at least this, and so many of them the right class."""

    threshold: float
    rows: int
    correct: int


class SubsetFit(NamedTuple):
    """What was found for one subset of fields, over the ``rows`` records that have all of them.

    ``ece`` and ``log_loss`` are of these records: before with T = 1, after with the T that they gave.
    """

    temperature: float
    rows: int
    ece_before: float
    ece_after: float
    log_loss_before: float
    log_loss_after: float


@dataclass(frozen=True)
class Calibration:
    """How a model's logits become probabilities.

    Attributes:
        subsets: by name (``image+text``, fields in the model's order; :data:`NOTHING`).
        pooled: temperature over all subsets together; that of a subset that is not among ``subsets``.
        whole: the records as they are, each with the fields that it has and their temperature; ``temperature`` is
            ``pooled``.
        cutoffs: of these records, thresholds ascending; none of multilabel.
        class_thresholds: of multilabel, for each class the probability from which on it is said
            (:func:`xmodal_dist.multilabel.best_thresholds`); else none.
        dataset: fingerprint of the dataset.
        split: the split that it was fitted on.
    """

    subsets: Mapping[str, SubsetFit]
    pooled: float
    whole: SubsetFit
    cutoffs: tuple[Cutoff, ...]
    dataset: str
    split: str
    class_thresholds: tuple[float, ...] = ()

    def threshold(self, target_precision: float) -> float:
        """The lowest threshold above which predictions are right often enough.

        It is the first whose precision on the records of the fit is at least the target even at its lower bound
        (:func:`precision_bound`). The bound is of each threshold by itself.

        Raises:
            UsageError: there is none.
        """
        bounds = [precision_bound(cutoff.correct, cutoff.rows) for cutoff in self.cutoffs]
        for cutoff, bound in zip(self.cutoffs, bounds, strict=True):
            if bound >= target_precision:
                return cutoff.threshold
        best = int(np.argmax(bounds))
        needed = (
            math.ceil(math.log(1 - CONFIDENCE_LEVEL) / math.log(target_precision))
            if target_precision < 1
            else 0
        )
        without_error = (
            f"takes at least {needed} predictions without an error"
            if needed
            else "cannot be shown by any number of records"
        )
        raise UsageError(
            f"a precision of {target_precision:g} is out of reach: of the {self.whole.rows} records of "
            f"{self.split!r} that the model was calibrated on, the {self.cutoffs[best].rows} most confident ones show "
            f"{bounds[best]:.4f} at {CONFIDENCE_LEVEL:.0%} confidence, and no others more; {target_precision:g} "
            f"{without_error}. Ask for at most {math.floor(bounds[best] * 1000) / 1000:g} with "
            "--set score.target_precision, set score.abstain_below yourself, or calibrate on more records with "
            "xmodal calibrate"
        )

    def thresholds(self, target_precisions: Iterable[float]) -> dict[float, float | None]:
        """:meth:`threshold` by target; None where there is none."""
        found: dict[float, float | None] = {}
        for target in target_precisions:
            try:
                found[target] = self.threshold(target)
            except UsageError:
                found[target] = None
        return found

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "version": _VERSION,
            "dataset": self.dataset,
            "split": self.split,
            "pooled": self.pooled,
            "whole": self.whole._asdict(),
            "subsets": {name: fit._asdict() for name, fit in self.subsets.items()},
            "cutoffs": [list(cutoff) for cutoff in self.cutoffs],
            **({"class_thresholds": list(self.class_thresholds)} if self.class_thresholds else {}),
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`to_json`.

        Raises:
            CheckpointError: of another version.
        """
        if content.get("version") != _VERSION:
            raise CheckpointError(
                f"calibration.json has version {content.get('version')!r}; this release reads version {_VERSION}; "
                "fit it anew with xmodal calibrate"
            )
        return Calibration(
            subsets={name: SubsetFit(**fit) for name, fit in content["subsets"].items()},
            pooled=content["pooled"],
            whole=SubsetFit(**content["whole"]),
            cutoffs=tuple(Cutoff(*cutoff) for cutoff in content["cutoffs"]),
            dataset=content["dataset"],
            split=content["split"],
            class_thresholds=tuple(content.get("class_thresholds", ())),
        )


def fit_calibration(
    logits: Mapping[str, _Floats],
    whole: _Floats,
    present: _Bools,
    truth: _Ints,
    fields: Sequence[str],
    *,
    dataset: str,
    split: str,
    task: Task = MULTICLASS,
) -> Calibration:
    """Fit temperatures and thresholds to held-out records.

    Args:
        logits: [n, C] by name of the subset that was shown; any subsets. A subset's temperature is fitted on the
            records that have all of its fields: of the others the model saw a smaller subset.
        whole: [n, C], with all fields that each record has.
        present: [n, M].
        truth: targets of the task, of n records.
        fields: M names.
        dataset: fingerprint of the dataset, for the record.
        split: its split, for the record.
        task: what the classes mean.

    Raises:
        DataError: no records.
    """
    if not len(truth):
        raise DataError(f"the split {split!r} has no record to calibrate on")
    places = {name: [fields.index(f) for f in name.split("+")] if name != NOTHING else [] for name in logits}
    seen = {name: present[:, place].all(axis=1) for name, place in places.items()}
    parts = {name: task.choices(logits[name][rows], truth[rows]) for name, rows in seen.items() if rows.any()}
    choices, chosen = task.choices(whole, truth)
    per_row = len(chosen) // len(truth)
    prior_rows = PRIOR_ROWS * per_row
    pooled = fit_temperature(list(parts.values()), prior=1.0, prior_rows=prior_rows)
    temperatures = {name: fit_temperature([part], pooled, prior_rows) for name, part in parts.items()}
    subsets = {name: _subset_fit(task, *parts[name], t, per_row) for name, t in temperatures.items()}
    names = [
        "+".join(f for f, has in zip(fields, row, strict=True) if has) or NOTHING for row in present.tolist()
    ]
    of_record = np.array([temperatures.get(name, pooled) for name in names])
    of_choice = of_record.repeat(per_row)[:, None]
    summary = _subset_fit(task, choices, chosen, of_choice, per_row)._replace(temperature=pooled)
    confidence, correct = task.claims(softmax(choices, of_choice), chosen)
    if task is MULTICLASS:
        return Calibration(subsets, pooled, summary, cutoffs(confidence, correct), dataset, split)
    thresholds = multilabel.best_thresholds(truth, confidence.reshape(truth.shape))
    rounded = tuple(float(f"{threshold:.6g}") for threshold in thresholds)
    return Calibration(subsets, pooled, summary, (), dataset, split, rounded)


def fit_temperature(
    parts: Sequence[tuple[_Floats, _Ints]], prior: float, prior_rows: float = PRIOR_ROWS
) -> float:
    """The temperature that minimises the log loss, by Newton's method kept in a bracket.

    With b = 1/T, the loss's derivative by b is a row's expected logit under softmax(b logits), less that of its true
    class: it rises with b, so there is one solution.

    Args:
        parts: logits [n, C] and class index [n], any number of them.
        prior: the temperature by which the imagined rows' classes are drawn.
        prior_rows: how many of them; the more, the nearer to ``prior``.

    Returns:
        T in [0.05, 20], six digits of it. ``prior`` where all logits of each row are equal.
    """
    centred = [(_centred(logits), truth) for logits, truth in parts]
    rows = sum(len(truth) for _, truth in centred)
    observed = sum(float(logits[np.arange(len(truth)), truth].sum()) for logits, truth in centred)
    share = prior_rows / rows
    sought = observed + share * _moments(centred, 1 / prior)[0]
    low, high, inverse = 1 / _HOTTEST, 1 / _COLDEST, 1 / prior
    for _ in range(_MAX_STEPS):
        expected, variance = _moments(centred, inverse)
        if variance <= 0:
            break
        slope = (1 + share) * expected - sought
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        newton = inverse - slope / ((1 + share) * variance)
        last, inverse = inverse, newton if low <= newton <= high else math.sqrt(low * high)
        if abs(inverse - last) <= 1e-9 * last:
            break
    return float(f"{1 / inverse:.6g}")


def _moments(centred: Sequence[tuple[_Floats, _Ints]], inverse: float) -> tuple[float, float]:
    """Mean and variance of a row's logit under softmax(inverse * logits), each summed over all rows."""
    expected = variance = 0.0
    for logits, _ in centred:
        share = np.exp(inverse * logits)
        share /= share.sum(axis=1, keepdims=True)
        mean = (share * logits).sum(axis=1)
        expected += float(mean.sum())
        variance += float((share * (logits - mean[:, None]) ** 2).sum())
    return expected, variance


def softmax(logits: _Floats, temperature: float | _Floats = 1.0) -> _Floats:
    """Probabilities [n, C] of logits [n, C] at a temperature, or one a row [n, 1]; float64."""
    shares: _Floats = np.exp(_centred(logits) / temperature)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _centred(logits: _Floats) -> _Floats:
    values = logits.astype(np.float64)
    centred: _Floats = values - values.max(axis=1, keepdims=True)
    return centred


def _subset_fit(
    task: Task, logits: _Floats, truth: _Ints, temperature: float | _Floats, per_row: int
) -> SubsetFit:
    """Of choices, ``per_row`` of them a record."""
    both = (softmax(logits), softmax(logits, temperature))
    errors = [metrics.calibration_error(metrics.binned(*task.claims(p, truth))) for p in both]
    figures = [*errors, *(metrics.log_loss(truth, p) * per_row for p in both)]
    rows = len(truth) // per_row
    return SubsetFit(float(np.mean(temperature)), rows, *(round(figure, 6) for figure in figures))


def cutoffs(confidence: _Floats, correct: _Bools) -> tuple[Cutoff, ...]:
    """Thresholds of the confidence, ascending: what is at least so sure, and how much of it is right.

    Args:
        confidence: [n] in [0, 1]; told apart to six decimals.
        correct: [n].

    Returns:
        One for each value of the confidence, of more than 200 values evenly chosen ones. The first takes in all rows.
    """
    scaled = np.floor(np.asarray(confidence, dtype=np.float64) * _RESOLUTION).astype(np.int64)
    values, first = np.unique(np.sort(scaled), return_index=True)
    right = np.concatenate([np.cumsum(correct[np.argsort(-scaled, kind="stable")]), [0]])
    if len(values) > _MAX_CUTOFFS:
        chosen = np.linspace(0, len(values) - 1, _MAX_CUTOFFS).round().astype(np.int64)
        values, first = values[chosen], first[chosen]
    return tuple(
        Cutoff(value / _RESOLUTION, rows, int(right[rows - 1]))
        for value, rows in zip(values.tolist(), (len(scaled) - first).tolist(), strict=True)
    )


def precision_bound(correct: int, rows: int) -> float:
    """What a share of right predictions is at least, at :data:`CONFIDENCE_LEVEL`: one-sided, Clopper-Pearson 1934."""
    from scipy.special import betaincinv

    if not correct:
        return 0.0
    return float(betaincinv(correct, rows - correct + 1, 1 - CONFIDENCE_LEVEL))
