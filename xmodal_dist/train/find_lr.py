"""The learning-rate range test (Smith 2017, arXiv:1506.01186): train for some steps at a rising rate, watch the loss.

The steps are those of a run's first epoch, with its data, augmentation, losses and optimizer, in this process and
without Ray. Pretrained encoders learn at their multiples of the rate, or stand still where the first epoch has them so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch

from xmodal_dist.batch import Batch
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import DataError, UsageError, XmodalError
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.pipeline.stream import PipelineSettings, Readers, stream_steps
from xmodal_dist.train import finetune
from xmodal_dist.train.job import TrainJob
from xmodal_dist.train.optim import adamw
from xmodal_dist.train.settings import TrainSettings
from xmodal_dist.train.step import optimizer_step
from xmodal_dist.train.stopwatch import Stopwatch

__all__ = ["RateSweep", "find_learning_rate", "read_sweep"]

_DIVERGED = 3.0
_RECENT_STEPS = 5
_MIN_STEPS = 20


class RateSweep(NamedTuple):
    """What a sweep found.

    Attributes:
        suggestion: for ``train.learning_rate``: a tenth of ``lowest_loss_at``. The other usual choice, where the loss
            falls fastest, moves by a factor of three with the smoothing.
        lowest_loss_at: rate with the lowest smoothed loss; from about here on training is unstable.
        diverged: whether the sweep ended early, at a loss far above the lowest.
        rates, losses, smoothed: of each step, in order: learning rate, loss, and its centred running mean.
    """

    suggestion: float
    lowest_loss_at: float
    diverged: bool
    rates: list[float]
    losses: list[float]
    smoothed: list[float]


def find_learning_rate(
    dataset: str,
    *,
    fields: Mapping[str, Mapping[str, Any] | None],
    model: ModelSettings,
    train: TrainSettings,
    pipeline: PipelineSettings,
    num_steps: int = 100,
    lowest: float = 1e-5,
    highest: float = 1.0,
) -> RateSweep:
    """Sweep the learning rate on a packed dataset, on the accelerator if there is one.

    Args:
        dataset: path or URI of the dataset.
        fields: settings by field name.
        model: settings of the model.
        train: settings of the training; its learning rate and number of epochs do not matter.
        pipeline: settings of the reading, which happens in this process.
        num_steps: steps of the sweep, at least 20; epochs follow each other until there are enough.
        lowest: rate of the first step.
        highest: rate of the last step, unless the loss diverges before.

    Raises:
        UsageError: the range or the number of steps makes no sweep, or sizes do not fit.
    """
    if num_steps < _MIN_STEPS or not 0 < lowest < highest:
        raise UsageError(
            f"a sweep of {num_steps} steps from {lowest:g} to {highest:g}: expected --steps of at least {_MIN_STEPS} "
            f"and 0 < --lowest < --highest"
        )
    job = _job(dataset, fields, model, train, pipeline)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(train.seed)
    network = job.new_model().to(device)
    finetune.load_pretrained(network, job.specs, lambda problem: [problem])
    optimizer = adamw(network, lowest, train.weight_decay, finetune.rate_scales(network, job.specs))
    finetune.freeze(network, job.specs, epoch=0)
    network.train()
    rates = np.geomspace(lowest, highest, num_steps).tolist()
    batches, watch, losses = _batches(job, device), Stopwatch(), list[float]()
    for rate in rates:
        step = optimizer_step(network, optimizer, next(batches), job, rate, 1, watch)
        losses.append(step.mean_loss())
        if _has_diverged(losses):
            break
    batches.close()
    return read_sweep(rates[: len(losses)], losses)


def read_sweep(rates: Sequence[float], losses: Sequence[float]) -> RateSweep:
    """What the losses at rising rates say.

    Args:
        rates: [n] rising, evenly in their logarithm.
        losses: [n]; the last may be infinite or NaN.

    Raises:
        XmodalError: no loss is finite.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        raise XmodalError(
            "the loss is not finite at the lowest rate of the sweep already; look at the data with xmodal inspect, "
            "or lower --lowest"
        )
    smoothed = _smoothed(finite)
    at = rates[int(np.argmin(smoothed))]
    return RateSweep(
        suggestion=float(f"{at / 10:.2g}"),
        lowest_loss_at=at,
        diverged=_has_diverged(losses),
        rates=list(rates[: len(finite)]),
        losses=finite,
        smoothed=smoothed,
    )


def _has_diverged(losses: Sequence[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    recent = losses[-_RECENT_STEPS:]
    return sum(recent) / len(recent) > _DIVERGED * min(_smoothed(losses))


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Mean over a quarter of the sweep around each step; it has no lag, which would favour high rates."""
    reach = max(1, len(losses) // 8)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    start = np.maximum(np.arange(len(losses)) - reach, 0)
    stop = np.minimum(np.arange(len(losses)) + reach + 1, len(losses))
    return [float(mean) for mean in (sums[stop] - sums[start]) / (stop - start)]


def _job(
    dataset: str,
    fields: Mapping[str, Mapping[str, Any] | None],
    model: ModelSettings,
    train: TrainSettings,
    pipeline: PipelineSettings,
) -> TrainJob:
    manifest = load_manifest(dataset)
    if not manifest.split_shards("train"):
        raise DataError(f"{dataset} has no training records")
    train = train.for_task(manifest.task)
    train.check(1, pipeline.window_rows)
    specs = fit_fields(dataset, manifest, fields, train.fit_rows)
    here = pipeline.model_copy(update={"placement": "local"})
    use_gpu = torch.cuda.is_available()
    return TrainJob("", dataset, manifest, specs, model, train, here, 1.0, 0.0, use_gpu, time.time())


def _batches(job: TrainJob, device: torch.device) -> Generator[Batch, None, None]:
    """Training batches without end."""
    schedule, readers = job.schedule, Readers.share(job.pipeline, 1, 0.0, False)
    chunks = (c for epoch in count() for c in schedule.chunks("train", epoch, 0, 1, augment=True))
    for step in stream_steps(job.reader(), chunks, job.pipeline, readers):
        yield step.records.to_batch().to(device)
