"""From losses to the gradient of the global batch on every rank: by DDP, or lane by lane, in sums that know no order.

Floating-point sums depend on their order, and training amplifies the difference: after some hundred steps two runs with
other numbers of workers have other weights. Lane by lane, each lane's gradient is computed by itself, so that kernels
see the same shapes, and the lanes' gradients are added in float64. That sum has room for 29 bits more than they have:
it is exact in any order while no two lanes' addends are further apart than that, and where they are, what it loses
hardly ever reaches the float32 that it is rounded to. So any number of workers ends with the same weights, to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from xmodal_dist.train.stopwatch import Stopwatch

__all__ = ["accumulate", "accumulate_by_lane", "pieces"]

_MIN_SPARSE = 2**16
"""Numbers in a table from which listing its rows costs less than adding all of them."""
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
    """Gradients summed over lanes and ranks, alike for any number of ranks.

    Args:
        model: a module, or one wrapped in DDP, whose own reduction is held back.
        lanes: micro-batches of each of this rank's lanes.
        backward: runs one micro-batch.
        num_workers: number of ranks.
        watch: takes the time of waiting for the other ranks.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    wide = torch.float32 if device.type == "mps" else torch.float64
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=wide, device=device)
    split = torch.split(total, [p.numel() for p in parameters])
    parts = [part.view_as(p) for part, p in zip(split, parameters, strict=True)]
    with _no_sync(model), _sparse_tables(model):
        for lane in lanes:
            for parameter in parameters:
                parameter.grad = None
            for rows in lane:
                backward(rows)
            for part, parameter in zip(parts, parameters, strict=True):
                if parameter.grad is not None:
                    _add(parameter.grad, part)
    if num_workers > 1:
        with watch.stage("synchronise"):
            dist.all_reduce(total)
    for part, parameter in zip(parts, parameters, strict=True):
        parameter.grad = part.to(parameter.dtype)


def _add(gradient: torch.Tensor, total: torch.Tensor) -> None:
    """Add a lane's gradient to the total, in place; one of a table lists the rows that were looked up, some twice."""
    total += gradient.coalesce().to(total.dtype) if gradient.is_sparse else gradient


@contextlib.contextmanager
def _sparse_tables(model: nn.Module) -> Iterator[None]:
    """In the block, large tables of embeddings have gradients of the rows that were looked up alone.

    A vocabulary has tens of thousands of rows, and a lane looks some hundred of them up.
    """
    embeddings = [part for part in model.modules() if isinstance(part, nn.Embedding) and not part.sparse]
    tables = [part for part in embeddings if part.weight.numel() >= _MIN_SPARSE]
    for table in tables:
        table.sparse = True
    try:
        yield
    finally:
        for table in tables:
            table.sparse = False


def _no_sync(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()
