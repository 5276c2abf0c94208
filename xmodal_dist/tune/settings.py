"""Settings of a search."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from xmodal_dist.settings import Settings

__all__ = ["LOWER_IS_BETTER", "Dimension", "Metric", "SearchSettings"]

Metric = Literal[
    "calibrated_loss",
    "accuracy",
    "macro_f1",
    "loss",
    "mean_average_precision",
    "micro_f1",
    "subset_accuracy",
    "parameters",
]
"""Figures of the validation split, and ``parameters`` of the network; more is better but for these."""
LOWER_IS_BETTER: tuple[Metric, ...] = ("calibrated_loss", "loss", "parameters")

_KINDS = ("choice", "uniform", "loguniform", "integer")
_NOT_DECIDING = {
    "trials", "budget_minutes", "max_concurrent", "cpus_per_worker", "gpus_per_worker", "max_failures", "repeat_seeds",
    "repeat_top", "final",
}  # fmt: skip


class Dimension(Settings):
    """The values that one setting may take: exactly one of the first four.

    Attributes:
        choice: one of these.
        uniform: a number between these two.
        loguniform: a number between these two, evenly in its logarithm.
        integer: a whole number from the first to the last of these two.
        when: the setting is searched only where these others have these values (or one of a list of them); elsewhere it
            keeps the run's own value.
    """

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    when: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of {', '.join(_KINDS)}, given: {', '.join(given) or 'none'}"
            )
        if given != ["choice"]:
            low, high = getattr(self, given[0])
            if not low < high:
                raise ValueError(f"{given[0]}: expected [lowest, highest], given: [{low}, {high}]")
            if self.loguniform and low <= 0:
                raise ValueError(f"loguniform: expected numbers above 0, given: {low}")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that stand for all: every choice, or lowest and highest."""
        return self.choice or self.uniform or self.loguniform or self.integer or ()

    def contains(self, value: Any) -> bool:
        """Whether the setting may take this value."""
        if self.choice is not None:
            return value in self.choice
        low, high = self.ends
        return isinstance(value, int | float) and bool(low <= value <= high)


class SearchSettings(Settings):
    """How hyperparameters are searched.

    Attributes:
        space: what to search, by the setting's name in the configuration (``train.learning_rate``); empty takes a space
            that suits the dataset's fields.
        algorithm: ``random``; ``grid``, every combination of choices and integers; ``optuna``, a tree-structured Parzen
            estimator (Bergstra et al. 2011), several metrics at once if ``metrics`` names them; ``auto`` is ``optuna``
            where it is installed, else ``random``.
        scheduler: who stops trials early: ``asha`` (Li et al. 2020); ``hyperband`` (Li et al. 2018), which pauses them
            until their bracket is complete; ``pbt`` (Jaderberg et al. 2017), which lets bad trials go on from good ones
            with changed settings; ``none``.
        metrics: what is optimised on the validation split; the first one chooses the best trial, if it is better than
            the run's own settings beyond chance. Empty takes ``train.monitor``.
        trials: how many; None takes as many as ``budget_minutes`` allows, or 32 without one. ``hyperband`` and ``pbt``
            need a number: None takes 32 and 8.
        budget_minutes: no trial begins after these, and those under way end with their epoch.
        seed: of the search's own draws; every trial trains with ``train.seed``.
        grace_epochs: epochs that every trial gets before ``asha`` may stop it; None takes those in which the run's
            learning rate warms up, whose figures say little.
        reduction_factor: ``asha`` and ``hyperband`` keep one of so many trials at each look.
        perturbation_epochs: ``pbt`` compares trials at every so many epochs.
        max_concurrent: trials at once, at the most; None takes what the cluster can hold.
        cpus_per_worker: CPUs that each worker of a trial holds.
        gpus_per_worker: GPUs that each worker of a trial holds; below 1 several trials share one. None takes 1 where
            the cluster has that many, else 0.
        max_failures: a trial whose process died is continued at most so often.
        repeat_seeds: the best trials and the run's own settings are trained with so many seeds in all, and chosen by
            their mean.
        repeat_top: how many of the best.
        final: ``promote`` makes the best trial's checkpoint the bundle; ``retrain`` trains its settings once more.
    """

    space: dict[str, Dimension] = Field(default_factory=dict)
    algorithm: Literal["auto", "random", "grid", "optuna"] = "auto"
    scheduler: Literal["none", "asha", "hyperband", "pbt"] = "asha"
    metrics: tuple[Metric, ...] = ()
    trials: int | None = Field(None, ge=1)
    budget_minutes: float | None = Field(None, gt=0)
    seed: int = 0
    grace_epochs: int | None = Field(None, ge=1)
    reduction_factor: int = Field(2, ge=2)
    perturbation_epochs: int = Field(2, ge=1)
    max_concurrent: int | None = Field(None, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0)
    max_failures: int = Field(1, ge=0)
    repeat_seeds: int = Field(1, ge=1)
    repeat_top: int = Field(3, ge=1)
    final: Literal["promote", "retrain"] = "promote"

    def optimised(self, monitor: Metric) -> tuple[Metric, ...]:
        """The figures, the deciding one first; ``monitor`` is the training's."""
        return self.metrics or (monitor,)

    def identity(self) -> dict[str, Any]:
        """The settings that decide which trials there are: a resumed search must have the same."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in _NOT_DECIDING}
