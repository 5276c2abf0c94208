"""AdamW, one step size for each table of embeddings, and a learning rate that is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from xmodal_dist.encoders import Pretrained

__all__ = ["AdamWithTables", "adamw", "learning_rate_at", "set_learning_rate"]


class AdamWithTables(torch.optim.AdamW):
    """AdamW in which a table of embeddings has one second moment, not one a weight.

    Adam divides each weight's gradient by its own size, so that an entry that few records have moves as far as one that
    all have, and a small data set's rare words are learned by heart. One second moment a block (as in Adam-mini, Zhang
    et al. 2024, arXiv:2406.16793) leaves entries the sizes of their gradients, as SGD does: what is seen often counts.
    Here it is the mean square over the rows of a table that a step touched. Groups with ``table`` set are such tables.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all groups; ``closure`` as of any optimizer."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["table"]]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for parameter in group["params"] if group["table"] else ():
                if parameter.grad is not None:
                    self._step_table(parameter, parameter.grad, group)

    def _step_table(self, table: nn.Parameter, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[table], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = table.new_zeros(())
        state["step"] += 1
        squares = torch.linalg.vector_norm(gradient, dim=1).square()
        touched = (squares > 0).sum().clamp(min=1) * table.shape[1]
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].lerp_(squares.sum() / touched, 1 - beta2)
        step = int(state["step"])
        size = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"]
        table.mul_(1 - group["lr"] * group["weight_decay"])
        table.addcmul_(state["exp_avg"], group["lr"] / (1 - beta1**step) / size, value=-1)


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    rate_scales: Mapping[nn.Parameter, float] | None = None,
) -> AdamWithTables:
    """AdamW (Loshchilov and Hutter 2019) that decays matrices only, not biases, norms and single vectors.

    Embeddings are tables (:class:`AdamWithTables`), but for those of pretrained networks.

    Epsilon is 1e-6: with the usual 1e-8, parameters whose gradients are rounding noise would take full steps, and runs
    on different numbers of workers would part.

    Args:
        model: of whose parameters those that may learn now are taken; later they may stand still for a while.
        learning_rate: until :func:`set_learning_rate` says otherwise.
        weight_decay: share of a matrix that is taken off at each step, times its learning rate.
        rate_scales: multiple of the learning rate of some parameters; 1 of the others.
    """
    scales = rate_scales or {}
    tables = _tables(model)
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = (scales.get(parameter, 1.0), parameter.ndim >= 2, parameter in tables)
            groups.setdefault(key, []).append(parameter)
    _spare_the_compiler()
    optimizer = AdamWithTables(
        [
            {
                "params": groups[scale, decays, table],
                "weight_decay": weight_decay * decays,
                "rate_scale": scale,
                "table": table,
            }
            for scale, decays, table in sorted(groups, reverse=True)
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


def _tables(model: nn.Module) -> set[torch.Tensor]:
    """The weights of embeddings, but for those of pretrained networks, whose rows have learned their sizes already."""
    pretrained = {
        p for part in model.modules() if isinstance(part, Pretrained) for p in part.backbone.parameters()
    }
    return {part.weight for part in model.modules() if isinstance(part, nn.Embedding)} - pretrained


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
