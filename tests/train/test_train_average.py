from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from xmodal_dist.train.average import WeightAverage
from xmodal_dist.train.checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint
from xmodal_dist.train.optim import adamw


def _walk(model: nn.Linear, average: WeightAverage, steps: range) -> None:
    for step in steps:
        with torch.no_grad():
            model.weight.copy_(torch.full_like(model.weight, float(step)))
        average.update(step)


def test_it_follows_the_weights_and_forgets_where_it_began() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(1e6)
    average = WeightAverage(model, 0.9)
    _walk(model, average, range(1, 201))
    # Of a line, an average with decay d lags d / (1 - d) steps behind.
    assert average.tensors["weight"].flatten().tolist() == pytest.approx([191.0] * 4, abs=0.2)


def test_it_is_applied_for_a_block_and_leaves_no_trace() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    _walk(model, average, range(1, 4))
    own, held = model.weight.clone(), average.tensors["weight"].clone()
    with pytest.raises(KeyError), average.applied():
        assert torch.equal(model.weight, held) and not torch.equal(own, held)
        raise KeyError
    assert torch.equal(model.weight, own) and torch.equal(average.tensors["weight"], held)


def test_it_goes_on_exactly_from_a_checkpoint(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer, average = adamw(model, 0.1, 0.0), WeightAverage(model, 0.9)
    _walk(model, average, range(1, 5))
    name = save_checkpoint(str(tmp_path), "run", Progress(global_step=4), model, optimizer, average)
    other = nn.Linear(2, 2)
    restored, cpu = WeightAverage(other, 0.9), torch.device("cpu")
    load_checkpoint(str(tmp_path), name, other, adamw(other, 0.1, 0.0), cpu, restored)
    assert torch.equal(other.weight, model.weight)
    for m, a in ((model, average), (other, restored)):
        _walk(m, a, range(5, 9))
    assert all(torch.equal(t, restored.tensors[key]) for key, t in average.tensors.items())
    load_weights(str(tmp_path), name, other, cpu, averaged=True)
    assert not torch.equal(other.weight, model.weight)
