"""Both ways to the global gradient, on three processes with DDP over gloo and on one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from xmodal_dist.train.gradients import accumulate, accumulate_by_lane, pieces
from xmodal_dist.train.stopwatch import Stopwatch

LANES, ROWS_PER_LANE, WORKERS = 8, 3, 3


class _WordsAndNumbers(nn.Module):
    """A network over numbers [B, 6], the first of which also name words of a large and a small table."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Embedding(40_000, 4), nn.Embedding(20, 4)
        self.hidden, self.out = nn.Linear(6, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        words = (x[:, :3].abs() * 4).long().clamp(max=19)
        hidden: torch.Tensor = self.hidden(x) + self.large(words * 2_000).sum(1) + self.small(words).sum(1)
        return torch.as_tensor(self.out(nn.functional.silu(hidden)))


def _gradient(by_lane: bool, rank: int, num_workers: int, wrapped: bool) -> torch.Tensor:
    """Of the mean loss over all lanes' rows, flat."""
    torch.manual_seed(0)
    bare = _WordsAndNumbers()
    x = torch.randn(LANES, ROWS_PER_LANE, 6)[rank::num_workers].reshape(-1, 6)
    model = DistributedDataParallel(bare, gradient_as_bucket_view=True) if wrapped else bare

    def backward(rows: slice) -> None:
        averaged = 1 if by_lane else num_workers
        (model(x[rows].clone()).square().sum() * averaged / (LANES * ROWS_PER_LANE)).backward()

    for _ in range(2):  # twice, since DDP's first step differs from the others
        bare.zero_grad(set_to_none=True)
        if by_lane:
            lanes = [pieces(slice(at, at + ROWS_PER_LANE), None) for at in range(0, len(x), ROWS_PER_LANE)]
            accumulate_by_lane(model, lanes, backward, num_workers, Stopwatch())
        else:
            accumulate(model, pieces(slice(0, len(x)), 5), backward)
    return torch.cat([p.grad.reshape(-1) for p in bare.parameters() if p.grad is not None])


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORKERS)
    found = {by_lane: _gradient(by_lane, rank, WORKERS, wrapped=True) for by_lane in (True, False)}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[bool, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, str(folder)), nprocs=WORKERS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


def test_lane_by_lane_three_workers_have_the_gradient_of_one_to_the_bit(
    on_three: list[dict[bool, torch.Tensor]],
) -> None:
    alone = _gradient(True, 0, 1, wrapped=False)
    assert all(torch.equal(found[True], alone) for found in on_three)


def test_by_ddp_three_workers_have_the_gradient_of_one_closely(
    on_three: list[dict[bool, torch.Tensor]],
) -> None:
    alone = _gradient(False, 0, 1, wrapped=False)
    assert all(torch.equal(found[False], on_three[0][False]) for found in on_three)
    assert torch.allclose(on_three[0][False], alone, atol=1e-6)
    assert torch.allclose(_gradient(True, 0, 1, wrapped=False), alone, atol=1e-6)


def test_pieces_cover_every_row_once() -> None:
    for size in (None, 1, 2, 5, 7, 50):
        found = pieces(slice(3, 10), size)
        assert [row for piece in found for row in range(piece.start, piece.stop)] == list(range(3, 10))
