"""The classical models: how each is made, chosen on the validation split, and asked for a score of every class."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xmodal_dist.baselines.views import Views
from xmodal_dist.errors import UsageError

__all__ = [
    "BASELINES", "LOWEST_LOG", "STACKER", "Baseline", "Best", "FieldModel", "Scores", "Split",
    "fit_best", "fit_field_model", "named", "scores_of",
]  # fmt: skip

Scores = NDArray[np.float64]
"""[n, C]: log-probabilities, -inf possible, or distances from the borders of an SVM."""


LOWEST_LOG = float(np.log(1e-6))
"""Log-probabilities below this count as this."""


class Baseline(NamedTuple):
    """A family of models.

    Attributes:
        name: as ``--baselines`` takes it.
        title: in words.
        view: which of :class:`Views` it fits.
        grid: settings to choose from on the validation split; the first where there is none.
        make: an estimator of scikit-learn with one of them.
        by_log_loss: whether the choice is by log loss, else by accuracy.
    """

    name: str
    title: str
    view: str
    grid: tuple[dict[str, Any], ...]
    make: Callable[..., Any]
    by_log_loss: bool = False


class Split(NamedTuple):
    """One field of a split.

    Attributes:
        views: of the records that have the field; None where none has.
        labels: [n] class index of all records.
        present: [n] which have the field.
    """

    views: Views | None
    labels: NDArray[np.int64]
    present: NDArray[np.bool_]


class Best(NamedTuple):
    """What a search of a grid found: the fitted estimator (an int where there was one class only), and how it did."""

    fitted: Any
    val_scores: Scores | None
    choice: dict[str, Any]
    val_accuracy: float | None
    note: str


class FieldModel(NamedTuple):
    """A baseline fitted to one field.

    Attributes:
        baseline: which.
        field: name of the field.
        fitted: the estimator; None where all its examples were of one class.
        without: [C], scores of records without the field: log of how often each class was among those of the train
            split that lack it, or among all where none lacks it.
        out_of_fold: scores of the train split by models that had not seen the record; of those without the field,
            ``without``.
        val_scores: scores of the validation split; None without one.
        choice: the settings chosen.
        val_accuracy: over the whole validation split; None without one.
        fit_cpu_s: CPU-seconds of choosing and fitting.
        fold_cpu_s: CPU-seconds of the models behind ``out_of_fold``.
        note: what there is to know about the fit, "" if nothing.
    """

    baseline: Baseline
    field: str
    fitted: Any
    without: NDArray[np.float64]
    out_of_fold: Scores
    val_scores: Scores | None
    choice: dict[str, Any]
    val_accuracy: float | None
    fit_cpu_s: float
    fold_cpu_s: float
    note: str

    @property
    def name(self) -> str:
        """Names it in results."""
        return f"{self.baseline.name}:{self.field}"

    @property
    def title(self) -> str:
        """Names it in sentences."""
        return f"{self.baseline.title} on {self.field}"

    def scores(self, views: Views | None, present: NDArray[np.bool_]) -> Scores:
        """Scores of n records; ``views`` are of those that have the field, None where none has."""
        features = None if views is None else getattr(views, self.baseline.view)
        return _spread(self.fitted, features, present, self.without)


def _linear_svm(**choice: Any) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(dual="auto", max_iter=5000, random_state=0, **choice)


def _rbf_svm(**choice: Any) -> Any:
    from sklearn.svm import SVC

    return SVC(kernel="rbf", gamma="scale", cache_size=200, **choice)


def _multinomial_nb(**choice: Any) -> Any:
    from sklearn.naive_bayes import MultinomialNB

    return MultinomialNB(**choice)


def _gaussian_nb(**choice: Any) -> Any:
    from sklearn.naive_bayes import GaussianNB

    return GaussianNB(**choice)


def _logistic_regression(**choice: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000, **choice)


def _gradient_boosting(**choice: Any) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        early_stopping=False, random_state=0, max_leaf_nodes=15, max_bins=63, **choice
    )


def _grid(name: str, *values: float) -> tuple[dict[str, Any], ...]:
    return tuple({name: value} for value in values)


BASELINES = (
    Baseline("linear_svm", "linear SVM", "linear", _grid("C", 0.1, 0.01, 1.0), _linear_svm),
    Baseline("rbf_svm", "RBF SVM", "dense", _grid("C", 3.0, 1.0, 10.0), _rbf_svm),
    Baseline(
        "multinomial_nb",
        "multinomial naive Bayes",
        "counts",
        _grid("alpha", 0.1, 0.01, 1.0),
        _multinomial_nb,
    ),
    Baseline(
        "gaussian_nb", "Gaussian naive Bayes", "dense", _grid("var_smoothing", 1e-2, 1e-9, 0.1), _gaussian_nb
    ),
    Baseline(
        "logistic_regression",
        "logistic regression",
        "linear",
        _grid("C", 1.0, 0.01, 0.1, 10.0, 100.0),
        _logistic_regression,
        by_log_loss=True,
    ),
    Baseline(
        "gradient_boosting",
        "gradient boosting",
        "dense",
        ({"max_iter": 60, "learning_rate": 0.1}, {"max_iter": 60, "learning_rate": 0.2}),
        _gradient_boosting,
    ),
)


STACKER = Baseline(
    "stack", "stack", "", _grid("C", 0.1, 0.001, 0.01, 1.0), _logistic_regression, by_log_loss=True
)
"""What joins the models of single fields."""


def named(names: Sequence[str]) -> tuple[Baseline, ...]:
    """The baselines of these names; all for none.

    Raises:
        UsageError: no such baseline.
    """
    known = {baseline.name: baseline for baseline in BASELINES}
    for name in names:
        if name not in known:
            raise UsageError(f"--baselines: there is no {name!r}; known are {', '.join(known)}")
    return tuple(b for b in BASELINES if not names or b.name in names)


def fit_field_model(
    baseline: Baseline,
    field: str,
    train: Split,
    val: Split | None,
    folds: NDArray[np.int64],
    num_classes: int,
) -> FieldModel:
    """Choose settings on the validation split, fit on the train split alone, and once more for every fold.

    Args:
        baseline: the model.
        field: the field's name.
        train: the train split; at least one record has the field.
        val: the validation split, if there is one.
        folds: [n] fold of each record of the train split; all 0 where no one will stack.
        num_classes: C.
    """
    labels, present, view = train.labels, train.present, baseline.view
    features, targets = getattr(train.views, view), labels[present]
    without = _class_logs(labels if present.all() else labels[~present], num_classes)

    def val_scores(fitted: Any) -> Scores | None:
        return None if val is None else _spread(fitted, getattr(val.views, view, None), val.present, without)

    began = time.process_time()
    best = fit_best(baseline, features, targets, val_scores, None if val is None else val.labels)
    fit_cpu_s = time.process_time() - began
    began = time.process_time()
    out_of_fold = np.tile(without, (len(labels), 1))
    for fold in range(int(folds.max()) + 1):
        held = folds[present] == fold
        if held.any() and not held.all():
            model = _fit(baseline, best.choice, features[~held], targets[~held])[0]
            out_of_fold[np.flatnonzero(present)[held]] = scores_of(model, features[held], num_classes)
    return FieldModel(
        baseline=baseline,
        field=field,
        fitted=best.fitted,
        without=without,
        out_of_fold=out_of_fold,
        val_scores=best.val_scores,
        choice=best.choice,
        val_accuracy=best.val_accuracy,
        fit_cpu_s=fit_cpu_s,
        fold_cpu_s=time.process_time() - began,
        note=best.note,
    )


def fit_best(
    baseline: Baseline,
    features: Any,
    labels: NDArray[np.int64],
    val_scores: Callable[[Any], Scores | None],
    val_labels: NDArray[np.int64] | None,
) -> Best:
    """Fit every setting of the grid and take the best on the validation split; among equals the first.

    Logistic regression is chosen by log loss: on a few hundred records accuracy hardly tells its settings apart, and a
    stack needs probabilities that mean something. Those of naive Bayes mean little, and SVMs have none.

    Args:
        baseline: the model.
        features: of the train split.
        labels: of the train split.
        val_scores: scores of the validation split by a fitted estimator.
        val_labels: its labels; None without one, then the first of the grid is taken.
    """
    best: Best | None = None
    least = np.inf
    for choice in baseline.grid if val_labels is not None else baseline.grid[:1]:
        fitted, note = _fit(baseline, choice, features, labels)
        scores = val_scores(fitted)
        loss, reached = 0.0, None
        if scores is not None and val_labels is not None:
            reached = float((scores.argmax(axis=1) == val_labels).mean())
            loss = _log_loss(scores, val_labels) if baseline.by_log_loss else 1 - reached
        if best is None or loss < least:
            best, least = Best(fitted, scores, choice, reached, note), loss
    assert best is not None
    return best


def _fit(baseline: Baseline, choice: dict[str, Any], features: Any, labels: NDArray[np.int64]) -> Any:
    """The fitted estimator, or the only class that there is; and a note."""
    from sklearn.exceptions import ConvergenceWarning

    if len(np.unique(labels)) == 1:
        return int(labels[0]), "all its records are of one class"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = baseline.make(**choice).fit(features, labels)
    stopped = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return fitted, "stopped before it converged" if stopped else ""


def _spread(fitted: Any, features: Any, present: NDArray[np.bool_], without: NDArray[np.float64]) -> Scores:
    scores = np.tile(without, (len(present), 1))
    if features is not None:
        scores[present] = scores_of(fitted, features, len(without))
    return scores


def scores_of(fitted: Any, features: Any, num_classes: int) -> Scores:
    """[n, C]; classes that the model was not shown score lowest."""
    scores = np.full((features.shape[0], num_classes), -np.inf)
    if isinstance(fitted, int):
        scores[:, fitted] = 0.0
        return scores
    if hasattr(fitted, "predict_log_proba"):
        with np.errstate(divide="ignore"):
            scores[:, fitted.classes_] = fitted.predict_log_proba(features)
        return scores
    values = fitted.decision_function(features)
    if values.ndim == 1:
        values = np.stack([-values, values], axis=1)
    scores[:] = values.min(axis=1, keepdims=True) - 1
    scores[:, fitted.classes_] = values
    return scores


def _log_loss(scores: Scores, labels: NDArray[np.int64]) -> float:
    return float(-np.maximum(scores[np.arange(len(labels)), labels], LOWEST_LOG).mean())


def _class_logs(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Log of each class's share, with half a record added to each."""
    counts = np.bincount(labels, minlength=num_classes) + 0.5
    logs: NDArray[np.float64] = np.log(counts / counts.sum())
    return logs
