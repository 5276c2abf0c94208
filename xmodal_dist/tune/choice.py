"""Which trial is the best, and what finding it cost."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from xmodal_dist.errors import XmodalError
from xmodal_dist.tune.ledger import TrialRecord
from xmodal_dist.tune.settings import Metric
from xmodal_dist.tune.space import Space
from xmodal_dist.tune.trial import TrialBase, objectives_of

__all__ = ["Choice", "Evidence", "best_seed", "choose", "own_rival", "pareto", "summarise"]

_ERRORS = 1.645
"""Of a normal distribution one part in twenty lies beyond."""


class Choice(NamedTuple):
    """Settings that were tried, over all seeds that they were trained with.

    Attributes:
        trials: their records, the first trial first.
        mean: of the first metric over them, as it is shown (a loss is better if lower).
        std: sample standard deviation; None of one.
    """

    trials: tuple[TrialRecord, ...]
    mean: float
    std: float | None

    @property
    def is_own(self) -> bool:
        """Whether these are the run's own settings."""
        return self.trials[0].trial == 0


class Evidence(NamedTuple):
    """What speaks for a trial and against the run's own settings.

    Attributes:
        trial: the best by its figure.
        gain: by how much its figure is better.
        error: standard error of that, over the validation records that both have seen; both 0 of fewer than two.
    """

    trial: int
    gain: float
    error: float

    @property
    def is_better(self) -> bool:
        """Whether that is more than chance gives one time in twenty."""
        return self.gain > _ERRORS * self.error


def choose(records: Iterable[TrialRecord], metrics: Sequence[Metric]) -> tuple[Choice, ...]:
    """All settings that did not fail, the best first: by the first metric, those with more seeds before the others.

    Raises:
        XmodalError: every trial failed; says why the first one did.
    """
    groups: dict[int, list[TrialRecord]] = {}
    failed = []
    for record in records:
        if record.state == "failed" or not record.metrics:
            failed.append(record)
        else:
            groups.setdefault(record.trial if record.repeat_of is None else record.repeat_of, []).append(
                record
            )
    if not groups:
        first = failed[0] if failed else None
        why = f"; trial {first.trial}: {first.reason}: {first.message}" if first else ""
        raise XmodalError(f"no trial trained for an epoch{why}")
    choices = []
    for group in groups.values():
        values = [record.metrics[metrics[0]] for record in group]
        std = statistics.stdev(values) if len(values) > 1 else None
        choices.append(Choice(tuple(sorted(group, key=lambda r: r.trial)), statistics.fmean(values), std))

    def rank(choice: Choice) -> tuple[int, float, int]:
        return (
            -len(choice.trials),
            -objectives_of({metrics[0]: choice.mean}, metrics[:1])[0],
            choice.trials[0].trial,
        )

    return tuple(sorted(choices, key=rank))


def own_rival(choices: Sequence[Choice], metric: Metric) -> Choice | None:
    """The run's own settings, where others are better by a figure in which there is chance; else None.

    Args:
        choices: the best first.
        metric: that decides.
    """
    own = next((choice for choice in choices if choice.is_own), None)
    return None if own is choices[0] or metric == "parameters" else own


def best_seed(choice: Choice, metrics: Sequence[Metric]) -> TrialRecord:
    """The seed of a choice that did best on validation."""
    return max(choice.trials, key=lambda r: (objectives_of(r.metrics, metrics[:1]), -r.trial))


def pareto(records: Sequence[TrialRecord], metrics: Sequence[Metric]) -> list[TrialRecord]:
    """The trials that no other beats in one metric without being worse in another."""
    points = [(record, objectives_of(record.metrics, metrics)) for record in records if record.metrics]
    return [
        record
        for record, mine in points
        if not any(
            all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for _, other in points
        )
    ]


def summarise(
    records: Mapping[int, TrialRecord],
    space: Space,
    base: TrialBase,
    choices: Sequence[Choice],
    evidence: Evidence | None,
    best: TrialRecord,
    wall_s: float,
) -> dict[str, Any]:
    """The content of result.json.

    Returns:
        ``metric`` and ``metrics``; ``best``, the trial of the bundle; ``default``, the first metric of the run's own
        settings; ``evidence``, what spoke for others than these, with ``is_better``, None where nothing did;
        ``choices``, the best settings, the chosen ones first; ``trials``, counts by state; ``epochs`` trained, and
        ``epochs_asked`` had every trial trained to its end; ``cost`` of all attempts; ``space``, as it was searched.
    """
    every, metrics = list(records.values()), base.metrics
    own = records.get(0)
    asked = sum(base.run.with_values(record.values).train.epochs for record in every)
    cpu_s = [record.cpu_s for record in every if record.cpu_s is not None]
    return {
        "metric": metrics[0],
        "metrics": list(metrics),
        "best": {
            "trial": best.trial,
            "values": best.values,
            "seed": best.seed,
            "best_epoch": best.best_epoch,
            "metrics": best.metrics,
        },
        "default": own.metrics.get(metrics[0]) if own else None,
        "evidence": evidence and {**evidence._asdict(), "is_better": evidence.is_better},
        "choices": [
            {
                "trial": choice.trials[0].trial,
                "seeds": [record.seed for record in choice.trials],
                "mean": choice.mean,
                "std": choice.std,
                "values": choice.trials[0].values,
            }
            for choice in choices[:10]
        ],
        "pareto": [record.trial for record in pareto(every, metrics)] if len(metrics) > 1 else [],
        "trials": dict(Counter(record.state for record in every)),
        "reasons": dict(Counter(record.reason for record in every if record.reason)),
        "epochs": sum(record.epochs for record in every),
        "epochs_asked": asked,
        "cost": {
            "wall_s": round(wall_s, 1),
            "cpu_hours": round(sum(r.wall_s * r.cpus for r in every) / 3600, 4),
            "gpu_hours": round(sum(r.wall_s * r.gpus for r in every) / 3600, 4),
            "cpu_hours_measured": round(sum(cpu_s) / 3600, 4) if cpu_s else None,
        },
        "space": {name: d.model_dump(mode="json", exclude_none=True) for name, d in space.dimensions.items()},
    }
