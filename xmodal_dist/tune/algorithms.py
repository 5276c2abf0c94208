"""Search algorithms: what to try next, given what the trials so far reached.

Each is a function of the trials that it was told of and their numbers, so a search is resumed by telling them again.
"""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_dist.errors import UsageError
from xmodal_dist.tune.settings import Dimension, SearchSettings
from xmodal_dist.tune.space import Space

__all__ = ["Algorithm", "make_algorithm", "resolve_algorithm"]

_STARTUP_TRIALS = 8
_KEPT = 0.5
"""Chance of each of the run's own settings to be kept in a trial before enough is known."""


class Algorithm(ABC):
    """Points of a space, one after the other."""

    @abstractmethod
    def ask(self, index: int) -> dict[str, Any] | None:
        """The values of the trial of this index, from 0; None if there is nothing left to try."""

    def tell(self, index: int | None, values: Mapping[str, Any], objectives: Sequence[float] | None) -> None:
        """What a trial reached, higher is better; None if it failed. By default of no concern.

        Args:
            index: that :meth:`ask` was called with; None if somebody else chose the values.
            values: of the trial.
            objectives: its figures.
        """
        del index, values, objectives


class _Random(Algorithm):
    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def ask(self, index: int) -> dict[str, Any] | None:
        return self._space.random_point(np.random.default_rng([self._seed, index]))


class _Grid(Algorithm):
    def __init__(self, space: Space) -> None:
        self._space = space
        next(space.grid())  # refuses what cannot be counted

    def ask(self, index: int) -> dict[str, Any] | None:
        return next(itertools.islice(self._space.grid(), index, None), None)


class _Parzen(Algorithm):
    """Optuna's tree-structured Parzen estimator; trials under way count as bad, so that workers do not crowd.

    Its first trials are drawn around the run's own settings: of draws of all settings at once most have one that does
    not suit, and a short search would learn from bad trials alone.
    """

    def __init__(
        self, space: Space, seed: int, own: Mapping[str, Any], num_objectives: int, num_known: int
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an option of the sampler is experimental
            # Of a resumed search the first draws are not drawn again.
            sampler = optuna.samplers.TPESampler(
                seed=seed + num_known, n_startup_trials=_STARTUP_TRIALS, constant_liar=True
            )
        self._study = optuna.create_study(directions=["maximize"] * num_objectives, sampler=sampler)
        self._space, self._asked = space, dict[int | None, Any]()
        self._seed, self._own = seed, {n: v for n, v in own.items() if space.contains({n: v})}

    def ask(self, index: int) -> dict[str, Any] | None:
        if index < _STARTUP_TRIALS:
            rng = np.random.default_rng([self._seed, index])
            kept = {name: value for name, value in self._own.items() if rng.random() < _KEPT}
            self._study.enqueue_trial(self._coded(kept))
        trial = self._study.ask()
        self._asked[index] = trial

        def draw(name: str, dimension: Dimension) -> Any:
            if dimension.choice is not None:
                return dimension.choice[trial.suggest_categorical(name, list(range(len(dimension.choice))))]
            low, high = dimension.ends
            if dimension.integer is not None:
                return trial.suggest_int(name, low, high)
            return trial.suggest_float(name, low, high, log=dimension.loguniform is not None)

        return self._space.point(draw)

    def tell(self, index: int | None, values: Mapping[str, Any], objectives: Sequence[float] | None) -> None:
        import optuna

        state = optuna.trial.TrialState.FAIL if objectives is None else optuna.trial.TrialState.COMPLETE
        if (trial := self._asked.pop(index, None)) is not None:
            self._study.tell(trial, objectives, state)
        elif objectives is not None and self._space.contains(values):
            self._study.add_trial(self._made(values, objectives))

    def _made(self, values: Mapping[str, Any], objectives: Sequence[float]) -> Any:
        """A trial that somebody else thought of."""
        import optuna

        distributions: dict[str, Any] = {}
        for name in values:
            dimension = self._space.dimensions[name]
            if dimension.choice is not None:
                distributions[name] = optuna.distributions.CategoricalDistribution(
                    range(len(dimension.choice))
                )
                continue
            low, high = dimension.ends
            if dimension.integer is not None:
                distributions[name] = optuna.distributions.IntDistribution(low, high)
            else:
                log = dimension.loguniform is not None
                distributions[name] = optuna.distributions.FloatDistribution(low, high, log=log)
        return optuna.trial.create_trial(
            params=self._coded(values), distributions=distributions, values=list(objectives)
        )

    def _coded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """As the study knows them: of choices the place."""
        choices = {name: self._space.dimensions[name].choice for name in values}
        return {
            name: value if (among := choices[name]) is None else among.index(value)
            for name, value in values.items()
        }


def resolve_algorithm(settings: SearchSettings) -> SearchSettings:
    """The settings with an algorithm that can run here.

    Raises:
        UsageError: the one that was asked for cannot, or does not go with the scheduler.
    """
    name, has_optuna = settings.algorithm, importlib.util.find_spec("optuna") is not None
    if settings.scheduler == "pbt" and name not in ("auto", "random"):
        raise UsageError(
            f"search.scheduler=pbt changes settings by itself: set search.algorithm to random (now {name})"
        )
    if settings.scheduler == "pbt" and (settings.final == "retrain" or settings.repeat_seeds > 1):
        raise UsageError(
            "search.scheduler=pbt changes settings while a trial trains, so no training from the start repeats it: set "
            "search.final to promote and search.repeat_seeds to 1"
        )
    if name == "optuna" and not has_optuna:
        raise UsageError("search.algorithm=optuna needs a package: pip install xmodal-dist[tune]")
    if len(settings.metrics) > 1 and settings.scheduler != "none":
        raise UsageError(
            f"search.metrics names {len(settings.metrics)} figures, but search.scheduler={settings.scheduler} stops "
            f"trials by one: set search.scheduler to none"
        )
    if name == "auto":
        name = "optuna" if has_optuna and settings.scheduler != "pbt" else "random"
    return settings.model_copy(update={"algorithm": name})


def make_algorithm(
    space: Space, settings: SearchSettings, own: Mapping[str, Any], num_objectives: int, num_known: int
) -> Algorithm:
    """The algorithm of a search.

    Args:
        space: where it looks.
        settings: of :func:`resolve_algorithm`.
        own: the run's own values, which may lie outside.
        num_objectives: figures that each trial is told with.
        num_known: trials that it will be told of before it is asked.
    """
    if settings.algorithm == "grid":
        return _Grid(space)
    if settings.algorithm == "optuna":
        return _Parzen(space, settings.seed, own, num_objectives, num_known)
    return _Random(space, settings.seed)
