"""The parts of a run that need no cluster: schedule, checkpoints, the log, settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from xmodal_dist.errors import CheckpointError, UsageError
from xmodal_dist.train.checkpoint import (
    Progress,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from xmodal_dist.train.log import MetricsLog, read_metrics
from xmodal_dist.train.optim import adamw, learning_rate_at
from xmodal_dist.train.settings import TrainSettings


@given(total=st.integers(1, 500), warmup=st.floats(0, 0.9), peak=st.floats(1e-6, 1.0))
def test_learning_rate_stays_within_zero_and_peak_and_falls_after_the_warm_up(
    total: int, warmup: float, peak: float
) -> None:
    rates = [learning_rate_at(step, total, peak, warmup) for step in range(total)]
    assert all(0 <= rate <= peak * (1 + 1e-9) for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_weight_decay_spares_vectors() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    decayed, spared = adamw(model, 1e-3, 0.1).param_groups
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert {p.ndim for p in spared["params"]} == {1} and spared["weight_decay"] == 0.0


def test_of_epochs_that_validation_cannot_tell_apart_the_latest_is_kept() -> None:
    losses = [(0.9, 0.1), (0.5, 0.1), (0.7, 0.1), (0.6, 0.1), (0.4, 0.05), (0.44, 0.01), (0.46, 0.01)]
    progress = Progress()
    kept = [progress.judge(-loss, error) for loss, error in losses]
    assert kept == [True, True, False, True, True, True, False]
    assert (progress.best, progress.stale_epochs) == (-0.4, 2)


def test_an_epoch_that_was_lucky_with_its_one_error_does_not_keep_later_ones_out() -> None:
    progress = Progress()
    losses = [(0.110, 0.033), (0.004, 0.003), (0.033, 0.016), (0.015, 0.013)]
    assert [progress.judge(-loss, error) for loss, error in losses] == [True, True, False, True]


def test_a_figure_without_an_error_keeps_the_best_and_of_equal_ones_the_latest() -> None:
    progress = Progress()
    assert [progress.judge(value, 0.0) for value in (0.5, 0.5, 0.4, 0.5)] == [True, True, False, True]


def test_an_entry_of_a_table_moves_by_the_size_of_its_gradient_and_other_weights_by_the_rate_alone() -> None:
    table, linear = nn.Embedding(4, 2), nn.Linear(1, 2, bias=False)
    before = [p.detach().clone() for p in (table.weight, linear.weight)]
    optimizer = adamw(nn.ModuleList([table, linear]), 0.01, 0.0)
    table.weight.grad = torch.tensor([[3.0, 3.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    linear.weight.grad = torch.tensor([[3.0], [1.0]])
    optimizer.step()
    moved = before[0] - table.weight.detach()
    assert moved[2:].abs().max() == 0, "what a step does not touch stays"
    assert (moved[0] / moved[1]).tolist() == pytest.approx([3, 3], rel=1e-4)
    assert moved[:2].square().mean().sqrt().item() == pytest.approx(0.01, rel=1e-4)
    assert (before[1] - linear.weight.detach()).flatten().tolist() == pytest.approx([0.01, 0.01], rel=1e-4)


def test_a_table_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path: Path) -> None:
    def stepped(model: nn.Embedding, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(torch.tensor([step % 5, 1])).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole = nn.Embedding(6, 3)
    torch.manual_seed(0)
    first = nn.Embedding(6, 3)
    stepped(whole, adamw(whole, 0.01, 0.1), range(9))
    optimizer = adamw(first, 0.01, 0.1)
    stepped(first, optimizer, range(4))
    name = save_checkpoint(str(tmp_path), "run", _at(4), first, optimizer)
    second = nn.Embedding(6, 3)
    resumed = adamw(second, 0.01, 0.1)
    load_checkpoint(str(tmp_path), name, second, resumed, torch.device("cpu"))
    stepped(second, resumed, range(4, 9))
    assert torch.equal(second.weight, whole.weight)


def _stepped() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = adamw(model, 0.1, 0.01)
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def _at(step: int) -> Progress:
    return Progress(epoch=1, step=step, global_step=step)


def test_a_checkpoint_restores_weights_optimizer_and_progress(tmp_path: Path) -> None:
    model, optimizer = _stepped()
    name = save_checkpoint(str(tmp_path), "run", _at(7), model, optimizer)
    assert latest_checkpoint(str(tmp_path), "run") == name
    other = nn.Linear(4, 3)
    other_optimizer = adamw(other, 0.1, 0.01)
    assert load_checkpoint(str(tmp_path), name, other, other_optimizer, torch.device("cpu")) == _at(7)
    for m, o in ((model, optimizer), (other, other_optimizer)):
        o.zero_grad()
        m(torch.ones(2, 4)).sum().backward()
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("damage", ["truncate", "remove", "no_manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    model, optimizer = _stepped()
    good = save_checkpoint(str(tmp_path), "run", _at(1), model, optimizer)
    bad = tmp_path / save_checkpoint(str(tmp_path), "run", _at(2), model, optimizer)
    if damage == "truncate":
        weights = bad / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "remove":
        (bad / "optimizer.safetensors").unlink()
    else:
        (bad / "MANIFEST.json").unlink()
    assert latest_checkpoint(str(tmp_path), "run") == good


def test_a_checkpoint_of_another_run_or_version_is_refused(tmp_path: Path) -> None:
    model, optimizer = _stepped()
    name = save_checkpoint(str(tmp_path), "run", _at(1), model, optimizer)
    with pytest.raises(CheckpointError, match="other settings or data"):
        latest_checkpoint(str(tmp_path), "another run")
    manifest = tmp_path / name / "MANIFEST.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))
    with pytest.raises(CheckpointError, match="version 99"):
        latest_checkpoint(str(tmp_path), "run")


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    model, optimizer = _stepped()
    names = [save_checkpoint(str(tmp_path), "run", _at(step), model, optimizer) for step in range(1, 7)]
    (tmp_path / "step-000000000").mkdir()
    prune_checkpoints(str(tmp_path), 2, names[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == [names[1], names[4], names[5]]


def test_the_log_takes_back_what_lies_beyond_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path), 0, 0)
    for step in range(1, 6):
        log.step(_at(step), 1.0 / step, 0.1, 10.0)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"event": "st')
    resumed = MetricsLog(str(tmp_path), 0, 3)
    resumed.step(_at(4), 0.5, 0.1, 10.0)
    resumed.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(str(tmp_path))] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1.0 / 3),
        (4, 0.5),
    ]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path), 1, 0)
    log.step(_at(1), 1.0, 0.1, 10.0)
    log.epoch(0, 1, 1.0, {"loss": 1.0}, True, 10, {})
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_do_not_fit_name_the_setting_to_change() -> None:
    with pytest.raises(
        UsageError, match=r"train\.batch_size=50 is not a multiple of train\.lanes=8.*batch_size=56"
    ):
        TrainSettings(batch_size=50).check(2, 128)
    with pytest.raises(UsageError, match=r"set train\.lanes to 9 or more"):
        TrainSettings().check(9, 128)


def test_mixup_needs_pairs_that_nothing_parts() -> None:
    with pytest.raises(UsageError, match=r"gives a lane 5 in each step, which is odd; .* multiple of 16"):
        TrainSettings(mixup_alpha=0.2, batch_size=40).check(2, 128)
    with pytest.raises(UsageError, match=r"train\.micro_batch_rows=3"):
        TrainSettings(mixup_alpha=0.2, micro_batch_rows=3).check(2, 128)
    TrainSettings(batch_size=40, micro_batch_rows=3).check(2, 128)


def test_classes_are_not_weighed_twice() -> None:
    with pytest.raises(UsageError, match=r"train\.class_weights to none"):
        TrainSettings(loss="class_balanced", class_weights="balanced").check(2, 128)


def test_an_elastic_run_needs_a_most_and_a_least_that_fit() -> None:
    with pytest.raises(UsageError, match=r"min_workers=2 needs train\.num_workers"):
        TrainSettings(min_workers=2).check(4, 128)
    with pytest.raises(UsageError, match=r"min_workers=5 is more than train\.num_workers=4"):
        TrainSettings(min_workers=5, num_workers=4).check(4, 128)
    with pytest.raises(UsageError, match=r"set train\.lanes to 9 or more"):
        TrainSettings(min_workers=2, num_workers=9).check(9, 128)
    TrainSettings(min_workers=1, num_workers=4).check(4, 128)


def test_only_settings_that_change_the_result_belong_to_the_identity() -> None:
    base = TrainSettings().identity()
    assert TrainSettings(num_workers=7, min_workers=2, max_failures=0, keep_checkpoints=5).identity() == base
    assert TrainSettings(seed=1).identity() != base
