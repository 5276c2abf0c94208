"""AdamW, and a learning rate that is a pure function of the step: nothing to save, nothing to drift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

__all__ = ["adamw", "learning_rate_at", "set_learning_rate"]


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    rate_scales: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) that decays matrices only, not biases, norms and single vectors.

    Epsilon is 1e-6: with the usual 1e-8, parameters whose gradients are rounding noise would take full steps, and runs
    on different numbers of workers would part.

    Args:
        model: of whose parameters those that may learn now are taken; later they may stand still for a while.
        learning_rate: until :func:`set_learning_rate` says otherwise.
        weight_decay: share of a matrix that is taken off at each step, times its learning rate.
        rate_scales: multiple of the learning rate of some parameters; 1 of the others.
    """
    scales = rate_scales or {}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((scales.get(parameter, 1.0), parameter.ndim >= 2), []).append(parameter)
    _spare_the_compiler()
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[scale, decays], "weight_decay": weight_decay * decays, "rate_scale": scale}
            for scale, decays in sorted(groups, reverse=True)
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    set_learning_rate(optimizer, learning_rate)
    return optimizer


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """The run's learning rate for the next step; each group takes its multiple."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_scale"]


def learning_rate_at(step: int, total_steps: int, peak: float, warmup_fraction: float) -> float:
    """Learning rate of global step ``step`` (from 0): linear warm-up, then half a cosine (SGDR, 2017) towards 0."""
    warmup = max(1, round(total_steps * warmup_fraction))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def _spare_the_compiler() -> None:
    """Do without importing torch's compiler, 2 CPU-seconds in every worker, only to keep it off these four methods.

    Each looks for its exempted self under this name, and imports the compiler to make one where there is none.
    """
    methods = (
        Optimizer.add_param_group,
        Optimizer.zero_grad,
        Optimizer.state_dict,
        Optimizer.load_state_dict,
    )
    for method in methods:
        inner = cast(Any, method).__wrapped__
        inner.__dynamo_disable = getattr(inner, "__dynamo_disable", inner)
