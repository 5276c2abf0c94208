"""Where the time of a run went, and how close it came to what its machines can do.

At the end the ranks' figures (``train/stopwatch.py``) are put together and compared with the bound, the records a
second that no training loop with these stages on these machines can pass:

- On CPUs readers and workers share the cores, so nothing overlaps into free time and costs add up: ``cores`` = K / (sum
  of CPU-seconds a record of reading, host-to-device, forward, backward and optimizer), K the cores that workers and
  readers may use together. A loop is one thread, so ``loops`` = workers * threads / (the same sum without reading).
- On accelerators the stages overlap: ``readers`` = K / (CPU-seconds a record of reading), ``device`` = records of a
  step / (device seconds of its host-to-device, forward, backward and optimizer).

The bound is the smallest of its limits. Its costs are measured in the same run: the figure says how much the loop, its
waits and its workers' waiting for each other take, not how good the kernels are. CPU time is that of the loop's thread;
with several threads a kernel the bound comes out too high, and the share too low.

What the loop waited for data while an accelerator was busy cost nothing and is not shown. Gradients that DDP averages
itself (``gradient_order: fast``) travel during backward, and waiting for other ranks is part of it; ``synchronise`` is
all other waiting for ranks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from xmodal_dist.train.stopwatch import Figures, RankTiming

__all__ = ["epoch_figures", "summarise"]

_STAGES = (
    "start_up", "restarts", "wait_for_data", "host_to_device", "forward", "backward", "optimizer", "synchronise",
    "evaluation", "checkpoint", "other",
)  # fmt: skip
_LOOP_STAGES = ("host_to_device", "forward", "backward", "optimizer")
_DEVICE_STAGES = (*_LOOP_STAGES, "synchronise")
_NETWORK = "the network sets the pace: add workers or accelerators, or make the model or its inputs smaller"
_IDLE_CORES = "the network sets the pace while cores are idle: raise train.num_workers"

_SENTENCES = {
    "start_up": "start-up took most of the time: the run is short; more epochs or data would not cost in proportion",
    "restarts": "restarts took most of the time: see why workers were lost or came and went, and set "
    "train.checkpoint_every_steps lower so that less is repeated",
    "wait_for_data": "reading was the bottleneck: add CPUs for readers, set pipeline.cache_dir so that "
    "later epochs do not decode, or pack media smaller",
    "host_to_device": "copies to the device were the bottleneck: make inputs smaller",
    "forward": _NETWORK,
    "backward": _NETWORK,
    "optimizer": "the optimizer was the bottleneck: a larger train.batch_size would amortise it",
    "synchronise": "workers waited for each other: use workers of equal speed, or a larger train.batch_size",
    "evaluation": "validation took most of the time: validate on fewer records",
    "checkpoint": "checkpoints took most of the time: raise train.checkpoint_every_steps",
    "other": "the loop itself took most of the time: a larger train.batch_size or train.log_every_steps amortises it",
}


def epoch_figures(ranks: Sequence[tuple[Figures, Figures]]) -> dict[str, Any]:
    """What an epoch's line and TensorBoard show.

    Args:
        ranks: what :meth:`Stopwatch.epoch` gave on each rank, rank 0 first.

    Returns:
        ``wall_s``; ``records_per_s`` of all ranks while they trained, without validation and checkpoints;
        ``wait_for_data_s`` of the rank that waited longest; ``stages_s``, the mean over ranks as their loops saw it.
    """
    wholes = [whole for whole, _ in ranks]
    stages = _mean([{**w.seconds, "other": w.wall_s - sum(w.seconds.values())} for w in wholes])
    return {
        "wall_s": round(wholes[0].wall_s, 3),
        "records_per_s": round(_rate([training for _, training in ranks]) or 0.0, 1),
        "wait_for_data_s": round(max(w.seconds.get("wait_for_data", 0.0) for w in wholes), 3),
        "stages_s": {name: round(stages.get(name, 0.0), 3) for name in _STAGES if stages.get(name)},
    }


def summarise(
    ranks: Sequence[RankTiming], wall_s: float, records: int, cpu_s: float, cores: float
) -> dict[str, Any]:
    """The content of goodput.json.

    Args:
        ranks: each rank's figures, rank 0 first.
        wall_s: seconds from the start of the command.
        records: records trained on, over all workers and epochs of this attempt.
        cpu_s: CPU-seconds of all workers and readers.
        cores: CPU cores that workers and readers may use together.

    Returns:
        Figures and, in ``binding_stage``, what they mean. ``stages_s`` are means over ranks and add up to ``wall_s``;
        ``steady`` is the training of epochs without start-up, evaluation and checkpoints, ``bound`` and
        ``share_of_bound`` what the module's text defines, None where there was too little to measure. ``loop_on_cpu``
        is the share of the time of forward, backward and so on in which the loop's thread ran: below 1 where it gave
        way to readers or to other programs on its core, or waited for an accelerator.
    """
    stages = _mean([_seconds(rank, wall_s) for rank in ranks])
    stages = {name: round(stages.get(name, 0.0), 3) for name in _STAGES[:-1]}
    stages["other"] = round(max(0.0, wall_s - sum(stages.values())), 3)
    steady = [rank.steady for rank in ranks]
    rate = _rate(steady)
    limits = _limits(ranks, cores)
    limit = min(limits, key=limits.__getitem__) if limits else None
    share = rate / limits[limit] if rate is not None and limit is not None else None
    training_s = max(wall_s - stages["start_up"] - stages["restarts"], 1e-9)
    return {
        "wall_s": round(wall_s, 3),
        "stages_s": stages,
        "records": records,
        "records_per_s": round(records / training_s, 1),
        "cpu_s_per_record": round(cpu_s / records, 6) if records else None,
        "steady": {
            "wall_s": round(_without_checkpoints(steady[0]), 3),
            "records": sum(figures.records for figures in steady),
            "records_per_s": None if rate is None else round(rate, 1),
            "cpu_s_per_record": {name: round(value, 7) for name, value in _costs(ranks).items()},
            "loop_on_cpu": _on_cpu(steady),
        },
        "bound": {
            "records_per_s": None if limit is None else round(limits[limit], 1),
            "limit": limit,
            "limits": {name: round(value, 1) for name, value in limits.items()},
            "cores": cores,
        },
        "share_of_bound": None if share is None else round(share, 4),
        "max_wait_for_data_s": round(max(r.total.seconds.get("wait_for_data", 0.0) for r in ranks), 3),
        "first_batch_s": max(
            (round(r.first_batch_s, 3) for r in ranks if r.first_batch_s is not None), default=None
        ),
        "epoch_gap_s": round(max(r.epoch_gap_s for r in ranks), 3),
        "reading": dict(sorted(sum((rank.reading for rank in ranks), Counter[str]()).items())),
        "num_workers": len(ranks),
        "binding_stage": _sentence(stages, wall_s, share, limits),
    }


def _sentence(
    stages: Mapping[str, float], wall_s: float, share: float | None, limits: Mapping[str, float]
) -> str:
    """The stage that took longest, what to do about it, and how far the run was from its bound."""
    binding = max(_STAGES, key=lambda name: stages[name])
    advice = _SENTENCES[binding]
    if advice == _NETWORK and limits.get("loops", math.inf) < 0.8 * limits.get("cores", 0.0):
        advice = _IDLE_CORES
    text = f"{advice} ({binding}: {stages[binding] / max(wall_s, 1e-9):.0%} of {wall_s:.0f} s"
    return f"{text}; training ran at {share:.0%} of its bound)" if share is not None else f"{text})"


def _seconds(rank: RankTiming, wall_s: float) -> dict[str, float]:
    """Seconds by stage; on an accelerator those of the device, and of the waits only what it idled through."""
    seconds = dict(rank.total.seconds)
    if not rank.sampled.steps:
        return seconds
    scale = rank.total.steps / rank.sampled.steps
    busy = {name: rank.sampled.seconds.get(name, 0.0) * scale for name in _DEVICE_STAGES}
    known = sum(s for name, s in seconds.items() if name not in (*_DEVICE_STAGES, "wait_for_data"))
    available = max(wall_s - known, 0.0)
    fits = min(1.0, available / max(sum(busy.values()), 1e-9))
    busy = {name: s * fits for name, s in busy.items()}
    wait = min(seconds.get("wait_for_data", 0.0), max(available - sum(busy.values()), 0.0))
    return {**seconds, **busy, "wait_for_data": wait}


def _rate(ranks: Sequence[Figures]) -> float | None:
    """Records a second of all ranks; the wall time is rank 0's, which writes the checkpoints that are left out."""
    records, wall_s = sum(figures.records for figures in ranks), _without_checkpoints(ranks[0])
    return records / wall_s if records and wall_s > 0 else None


def _without_checkpoints(figures: Figures) -> float:
    return figures.wall_s - figures.seconds.get("checkpoint", 0.0)


def _costs(ranks: Sequence[RankTiming]) -> dict[str, float]:
    """CPU-seconds a record by stage in the steady part, over all ranks; of reading, in all training.

    What reading took is told with the first of the steps that were read together: of the first step's, the others would
    go without.
    """
    parts = {name: [rank.steady for rank in ranks] for name in _LOOP_STAGES}
    parts["reading"] = [rank.steady + rank.first_step for rank in ranks]
    records = {name: sum(part.records for part in figures) for name, figures in parts.items()}
    return {
        name: sum(part.cpu_s.get(name, 0.0) for part in figures) / records[name]
        for name, figures in parts.items()
        if records[name]
    }


def _on_cpu(ranks: Sequence[Figures]) -> float | None:
    wall_s, cpu_s = (
        sum(stages.get(name, 0.0) for stages in clock for name in _LOOP_STAGES)
        for clock in ([r.seconds for r in ranks], [r.cpu_s for r in ranks])
    )
    return round(cpu_s / wall_s, 4) if wall_s else None


def _limits(ranks: Sequence[RankTiming], cores: float) -> dict[str, float]:
    """Records a second that each resource allows; none where there was too little to measure."""
    costs = _costs(ranks)
    reading, loop = costs.get("reading", 0.0), sum(costs.get(name, 0.0) for name in _LOOP_STAGES)
    if sampled := [rank.sampled for rank in ranks if rank.sampled.steps]:
        device_s = sum(s.seconds.get(name, 0.0) for s in sampled for name in _LOOP_STAGES)
        candidates = {
            "readers": (cores, reading),
            "device": (len(ranks) * sum(s.records for s in sampled), device_s),
        }
    else:
        candidates = {"cores": (cores, reading + loop), "loops": (sum(r.threads for r in ranks), loop)}
    return {name: amount / cost for name, (amount, cost) in candidates.items() if cost > 0}


def _mean(ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = {name for rank in ranks for name in rank}
    return {name: sum(rank.get(name, 0.0) for rank in ranks) / len(ranks) for name in names}
