"""From losses to the gradient of the global batch on every rank: by DDP, or lane by lane in a fixed order.

Floating-point sums depend on their order, and training amplifies the difference: after some hundred steps two runs with
other numbers of workers have other weights. Lane by lane, each lane's gradient is computed by itself, so that kernels
see the same shapes, and the lanes' gradients are added as a tree over lane numbers that the ranks of 1 and 2 workers
share: their weights are equal to the bit. From 4 workers on the last sum is the communication library's, and close.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from xmodal_dist.train.stopwatch import Stopwatch

__all__ = ["accumulate", "accumulate_by_lane", "pieces"]

_Backward = Callable[[slice], None]
"""Runs forward and backward over some rows of the batch, adding to the parameters' gradients."""


def pieces(rows: slice, micro_batch_rows: int | None) -> list[slice]:
    """Cut a range of rows into micro-batches."""
    size = micro_batch_rows or rows.stop - rows.start
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


def accumulate(model: nn.Module, micro_batches: Sequence[slice], backward: _Backward) -> None:
    """Gradients summed over the micro-batches and averaged over ranks by DDP, once, at the last of them."""
    for index, rows in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with contextlib.nullcontext() if last else _no_sync(model):
            backward(rows)


def accumulate_by_lane(
    model: nn.Module,
    lanes: Sequence[Sequence[slice]],
    backward: _Backward,
    num_workers: int,
    watch: Stopwatch,
) -> None:
    """Gradients averaged over ranks, summed in an order that one and two workers share.

    Args:
        model: a module, or one wrapped in DDP, whose own reduction is held back.
        lanes: micro-batches of each of this rank's lanes, in lane order.
        backward: runs one micro-batch.
        num_workers: number of ranks.
        watch: takes the time of waiting for the other ranks.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    with _no_sync(model):
        total = _tree_sum(parameters, lanes, backward)
    if num_workers > 1:
        flat = torch.cat([gradient.reshape(-1) for gradient in total])
        with watch.stage("synchronise"):
            dist.all_reduce(flat)
        flat /= num_workers
        total = [
            part.view_as(g)
            for part, g in zip(torch.split(flat, [g.numel() for g in total]), total, strict=True)
        ]
    for parameter, gradient in zip(parameters, total, strict=True):
        parameter.grad = gradient


def _tree_sum(
    parameters: Sequence[nn.Parameter], lanes: Sequence[Sequence[slice]], backward: _Backward
) -> list[torch.Tensor]:
    """Sum over lanes: the even ones, plus the odd ones, each summed likewise; log2(lanes) gradients in memory."""
    if len(lanes) > 1:
        even, odd = (_tree_sum(parameters, lanes[start::2], backward) for start in (0, 1))
        return [a.add_(b) for a, b in zip(even, odd, strict=True)]
    for parameter in parameters:
        parameter.grad = None
    for rows in lanes[0]:
        backward(rows)
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def _no_sync(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()
