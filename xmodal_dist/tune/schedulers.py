"""Who stops, pauses and changes trials: halving, or Ray Tune's schedulers; the run's own settings are spared."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ray.tune.schedulers import FIFOScheduler, HyperBandScheduler, PopulationBasedTraining, TrialScheduler

from xmodal_dist.errors import UsageError
from xmodal_dist.train.settings import TrainSettings
from xmodal_dist.tune.ledger import Planned
from xmodal_dist.tune.settings import Dimension, SearchSettings
from xmodal_dist.tune.space import Space
from xmodal_dist.tune.trial import SCORE, TrialBase, number_of, trial_job

__all__ = ["SparingScheduler", "check_population", "looks", "make_scheduler"]

_EPOCH = "epoch"
_LATER = 1.25
_FIXED_WHILE_TRAINING = {"train.epochs", "train.batch_size", "train.lanes", "train.fit_rows"}


def make_scheduler(
    settings: SearchSettings, space: Space, train: TrainSettings, past: Sequence[Sequence[float]] = ()
) -> TrialScheduler:
    """The scheduler of a search.

    Args:
        settings: of the search.
        space: what ``pbt`` changes.
        train: the run's own; trials may search its epochs.
        past: scores after each epoch of trials that ended before the search was resumed; ``asha`` compares with them.
    """
    searched = space.dimensions.get("train.epochs")
    max_epochs = int(max([train.epochs, *(searched.ends if searched else ())]))
    common: dict[str, Any] = {"metric": SCORE, "mode": "max", "time_attr": _EPOCH}
    inner: TrialScheduler
    if settings.scheduler == "asha":
        epochs = looks(settings.grace_epochs or train.warmup_epochs, max_epochs)
        inner = _Halving(epochs, settings.reduction_factor, past)
    elif settings.scheduler == "hyperband":
        inner = HyperBandScheduler(**common, max_t=max_epochs, reduction_factor=settings.reduction_factor)
    elif settings.scheduler == "pbt":
        inner = PopulationBasedTraining(
            **common,
            perturbation_interval=settings.perturbation_epochs,
            hyperparam_mutations={name: _mutation(d) for name, d in space.dimensions.items()},
            custom_explore_fn=lambda config: _within(space, config),
            log_config=False,
        )
    else:
        inner = FIFOScheduler()  # type: ignore[no-untyped-call]
    return SparingScheduler(inner)


def looks(first: int, max_epochs: int) -> list[int]:
    """Epochs, counted from 1, after which trials are compared: the first, then each a quarter later, never the last."""
    found, epoch = list[int](), first
    while epoch < max_epochs:
        found.append(epoch)
        epoch = max(epoch + 1, round(epoch * _LATER))
    return found


class _Halving(FIFOScheduler):
    """Asynchronous successive halving (Li et al. 2020) that looks more often than at each doubling of the epochs.

    At a look a trial goes on if it is among the best of those that came there before. With the looks of the paper, 2,
    4, 8 of 16 epochs, searches took 2/5 of all epochs; with these 1/3, and found the same.

    Args:
        epochs: of the looks, counted from 1.
        reduction_factor: one of so many goes on.
        past: scores after each epoch of trials that ended before.
    """

    def __init__(self, epochs: Sequence[int], reduction_factor: int, past: Sequence[Sequence[float]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._behind_percent = 100 * (1 - 1 / reduction_factor)
        self._seen: dict[int, dict[str, float]] = {
            epoch: {f"past-{n}": scores[epoch - 1] for n, scores in enumerate(past) if len(scores) >= epoch}
            for epoch in epochs
        }

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether it goes on."""
        seen = self._seen.get(result[_EPOCH])
        if seen is None:
            return str(TrialScheduler.CONTINUE)
        others = [score for name, score in seen.items() if name != trial.trial_id]
        score = seen[trial.trial_id] = result[SCORE]
        is_behind = bool(others) and score < np.percentile(others, self._behind_percent)
        return str(TrialScheduler.STOP if is_behind else TrialScheduler.CONTINUE)


class SparingScheduler(TrialScheduler):
    """A scheduler that never stops trial 0, the run's own settings: it trains to its end, as a measure.

    Halving measures the others by it from the first look on. Schedulers that pause trials never see it.

    Args:
        inner: decides on all others.
    """

    def __init__(self, inner: TrialScheduler) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inner = inner
        self._sees_spared = isinstance(inner, _Halving)

    @property
    def supports_buffered_results(self) -> bool:
        """As the inner one."""
        return bool(self._inner.supports_buffered_results)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Settled by :func:`make_scheduler` already."""
        del spec
        return metric is None and mode is None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Told where it sees the trial; PBT, which refuses any search algorithm, is told of none."""
        if self._sees(trial):
            if isinstance(self._inner, PopulationBasedTraining):
                tune_controller = SimpleNamespace(search_alg=None)
            self._inner.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Told where it sees the trial."""
        if self._sees(trial):
            self._inner.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """The inner one's decision, but for a spared one."""
        if not self._sees(trial):
            return str(TrialScheduler.CONTINUE)
        decision = str(self._inner.on_trial_result(tune_controller, trial, result))
        return str(TrialScheduler.CONTINUE) if _spared(trial) else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Told where it sees the trial."""
        if self._sees(trial):
            self._inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Told where it sees the trial."""
        if self._sees(trial):
            self._inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """A spared one that waits, else the inner one's choice."""
        for trial in tune_controller.get_trials():
            if _spared(trial) and trial.status in ("PENDING", "PAUSED"):
                return trial
        return self._inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """The inner one's."""
        return str(self._inner.debug_string())

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search is resumed from its own files."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search is resumed from its own files."""

    def _sees(self, trial: Any) -> bool:
        return self._sees_spared or not _spared(trial)


def check_population(base: TrialBase, space: Space) -> None:
    """Refuse dimensions that ``pbt`` cannot change while a trial trains.

    Raises:
        UsageError: the weights of one value would not fit the network of another, or the epochs would not.
    """
    plain = Planned(0, {}, base.run.train.seed)
    shapes = _shapes(base, plain)
    for name, dimension in space.dimensions.items():
        problem = ""
        if dimension.when:
            problem = "it depends on another setting"
        elif name in _FIXED_WHILE_TRAINING:
            problem = "it changes the order of the records"
        elif any(_shapes(base, Planned(0, {name: value}, plain.seed)) != shapes for value in dimension.ends):
            problem = "it changes the shape of the network"
        if problem:
            raise UsageError(
                f"search.space.{name}: search.scheduler=pbt cannot change it while a trial trains, because {problem}; "
                f"leave it out, or set another scheduler"
            )


def _shapes(base: TrialBase, planned: Planned) -> dict[str, torch.Size]:
    job = trial_job(base, planned)
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in job.new_model().state_dict().items()}


def _mutation(dimension: Dimension) -> Any:
    from ray import tune

    if dimension.choice is not None:
        return list(dimension.choice)
    low, high = dimension.ends
    if dimension.integer is not None:
        return tune.randint(low, high + 1)
    return tune.loguniform(low, high) if dimension.loguniform is not None else tune.uniform(low, high)


def _within(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """Perturbed values brought back into their ranges."""
    for name, dimension in space.dimensions.items():
        if dimension.choice is None:
            low, high = dimension.ends
            config[name] = min(max(config[name], low), high)
    return config


def _spared(trial: Any) -> bool:
    return number_of(str(trial)) == 0
