"""Whether a trial is better than the run's own settings, or was only luckier on the validation records.

Of many trials the best one's figure is flattered by chance, the more the fewer records decide. Both have seen the same
ones, so what counts is the error of the difference: it is far smaller than that of either figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray

from xmodal_dist.task import Task
from xmodal_dist.train.calibration import Observed
from xmodal_dist.train.validation import totals
from xmodal_dist.tune.choice import Choice, Evidence
from xmodal_dist.tune.settings import Metric
from xmodal_dist.tune.trial import objectives_of

__all__ = ["weigh"]

_GROUPS = 40
"""So many give the error to a tenth of itself."""


def weigh(best: Choice, own: Choice, said: Mapping[int, Observed], metric: Metric, task: Task) -> Evidence:
    """Compare two choices on the validation records, the figure of each the mean over its seeds.

    The error is that of the delete-a-group jackknife (Kott 2001; Efron and Tibshirani 1993, chapter 11), which holds
    for any figure of the records: both are computed without one group of records after the other.

    Args:
        best: that is better by its figure.
        own: that it is compared with.
        said: by trial, what each of their models says of validation records.
        metric: that decides.
        task: what classes mean.
    """
    sides = [[said[record.trial] for record in choice.trials] for choice in (best, own)]
    ids = reduce(np.intersect1d, (seed.ids for side in sides for seed in side))
    aligned = [[_rows(seed, ids) for seed in side] for side in sides]

    def gain(kept: NDArray[np.bool_]) -> float:
        ours, others = (
            float(np.mean([_figure(truth[kept], logits[kept], metric, task) for truth, logits in side]))
            for side in aligned
        )
        return ours - others

    groups = np.random.default_rng(0).permutation(len(ids)) % _GROUPS
    num_groups = min(len(ids), _GROUPS)
    if num_groups < 2:
        return Evidence(best.trials[0].trial, 0.0, 0.0)
    without = np.array([gain(groups != group) for group in range(num_groups)])
    error = math.sqrt((num_groups - 1) / num_groups * float(((without - without.mean()) ** 2).sum()))
    return Evidence(best.trials[0].trial, gain(groups >= 0), error)


def _rows(seed: Observed, ids: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and logits, shown all fields, of the records with these ids."""
    places = np.searchsorted(seed.ids, ids)
    return torch.from_numpy(seed.truth[places]), torch.from_numpy(seed.logits[places, -1])


def _figure(truth: torch.Tensor, logits: torch.Tensor, metric: Metric, task: Task) -> float:
    """As validation counts it, higher is better."""
    sums = totals(task, logits.shape[1], logits.device, None)
    sums.add_said(logits, truth)
    return objectives_of(sums.reduce(1, len(truth)), (metric,))[0]
