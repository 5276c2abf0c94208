"""Checkpoints: one directory each, tensors as safetensors, the rest as JSON, a manifest with hashes last.

The latest checkpoint is computed, not remembered: the highest step whose manifest is there and whose files are whole.
A directory without a manifest is a write that was cut short and counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from xmodal_dist import storage
from xmodal_dist.errors import CheckpointError
from xmodal_dist.train.average import WeightAverage

__all__ = [
    "Progress",
    "checkpoint_name",
    "clear_checkpoints",
    "copy_checkpoint",
    "latest_checkpoint",
    "load_checkpoint",
    "load_progress",
    "load_weights",
    "prune_checkpoints",
    "save_checkpoint",
]

_VERSION = 2
_LAST = "MANIFEST.json"
_AVERAGE = "average.safetensors"


@dataclass
class Progress:
    """Where a run is: with the weights and the optimizer, everything that is needed to go on exactly.

    Attributes:
        epoch: epoch under way, from 0.
        step: steps done in it; equal to the steps of an epoch when only its validation is left.
        global_step: steps done since the start.
        loss_sum, weight_sum: sums over this epoch's records, over all workers.
        rows_used, rows_rejected: records of this epoch so far, over all workers.
        best: monitored value of the best epoch, more is better; None before the first.
        floor: least value within its own standard error.
        best_epoch: the epoch that is kept, the latest of those; -1 before the first.
        best_checkpoint: directory name of its checkpoint.
        best_metrics: its validation metrics.
        stale_epochs: epochs since the best value.
        done: whether training has ended.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    rows_used: int = 0
    rows_rejected: int = 0
    best: float | None = None
    floor: float | None = None
    best_epoch: int = -1
    best_checkpoint: str = ""
    best_metrics: dict[str, Any] = field(default_factory=dict)
    stale_epochs: int = 0
    done: bool = False

    def judge(self, value: float, error: float) -> bool:
        """Whether the epoch that has just ended is to be kept: no later one is as good as the best, within its error.

        One standard error, the larger of the two (after Breiman et al. 1984): a small validation split cannot tell such
        epochs apart, and the latest has trained the longest at the lowest rate. The best one's error alone is too
        small where an epoch was lucky with its few mistakes.

        Args:
            value: the monitored figure, more is better.
            error: its standard error; 0 keeps the best alone, of equal ones the latest.
        """
        if self.best is None or value >= self.best:
            self.best, self.floor, self.stale_epochs = value, value - error, 0
            return True
        self.stale_epochs += 1
        return self.floor is not None and value >= min(self.floor, self.best - error)


def save_checkpoint(
    root: str,
    run_digest: str,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
) -> str:
    """Write ``root/step-XXXXXXXX-eEEEE`` and return that name; an existing whole one of that name is kept."""
    name = checkpoint_name(progress)
    if _verified(root, name) is not None:
        return name
    tensors, scalars = _split_optimizer(optimizer)
    files = {
        "model.safetensors": save_tensors(_contiguous(model.state_dict())),
        "optimizer.safetensors": save_tensors(_contiguous(tensors)),
        "state.json": json.dumps({"progress": asdict(progress), "optimizer": scalars}, indent=1).encode(),
    }
    if average is not None:
        files[_AVERAGE] = save_tensors(_contiguous(average.tensors))
    for file, payload in files.items():
        storage.write_bytes(storage.join(root, name, file), payload)
    manifest = {
        "version": _VERSION,
        "run": run_digest,
        "epoch": progress.epoch,
        "step": progress.step,
        "global_step": progress.global_step,
        "files": {f: {"sha256": hashlib.sha256(p).hexdigest(), "bytes": len(p)} for f, p in files.items()},
    }
    storage.write_bytes(storage.join(root, name, _LAST), json.dumps(manifest, indent=1).encode())
    return name


def checkpoint_name(progress: Progress) -> str:
    """Directory name of a checkpoint; sorts by progress, an epoch's end (marked ``-end``) after its last step."""
    return f"step-{progress.global_step:09d}" + (
        "-end" if progress.step == 0 and progress.global_step else ""
    )


def latest_checkpoint(root: str, run_digest: str) -> str | None:
    """Name of the newest whole checkpoint, None if there is none.

    Raises:
        CheckpointError: it belongs to a run with other settings or data.
    """
    for name in reversed(_names(root)):
        manifest = _verified(root, name)
        if manifest is None:
            continue
        if manifest["run"] != run_digest:
            raise CheckpointError(
                f"{storage.join(root, name)} belongs to a run with other settings or data; use another --output"
            )
        return name
    return None


def load_checkpoint(
    root: str,
    name: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    average: WeightAverage | None = None,
) -> Progress:
    """Restore weights, their average and the optimizer in place and return the progress."""
    load_weights(root, name, model, device)
    state = json.loads(storage.read_text(storage.join(root, name, "state.json")))
    tensors = load_tensors(storage.read_bytes(storage.join(root, name, "optimizer.safetensors")))
    optimizer.load_state_dict(_join_optimizer(tensors, state["optimizer"]))
    if average is not None:
        average.load(load_tensors(storage.read_bytes(storage.join(root, name, _AVERAGE))))
    return Progress(**state["progress"])


def load_progress(root: str, name: str) -> Progress:
    """Where the run was."""
    return Progress(**json.loads(storage.read_text(storage.join(root, name, "state.json")))["progress"])


def copy_checkpoint(source: str, name: str, target: str, run_digest: str) -> None:
    """Copy ``source/name`` to ``target/name`` as a checkpoint of the run of that digest."""
    manifest = json.loads(storage.read_text(storage.join(source, name, _LAST)))
    for file in manifest["files"]:
        storage.write_bytes(
            storage.join(target, name, file), storage.read_bytes(storage.join(source, name, file))
        )
    payload = json.dumps({**manifest, "run": run_digest}, indent=1).encode()
    storage.write_bytes(storage.join(target, name, _LAST), payload)


def clear_checkpoints(root: str) -> None:
    """Remove all of them."""
    fs, inner = storage.filesystem(root)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)


def load_weights(
    root: str, name: str, model: nn.Module, device: torch.device, averaged: bool = False
) -> None:
    """Restore weights in place; ``averaged`` takes the average for the parameters that it is of."""
    weights = load_tensors(storage.read_bytes(storage.join(root, name, "model.safetensors")))
    if averaged:
        weights |= load_tensors(storage.read_bytes(storage.join(root, name, _AVERAGE)))
    model.load_state_dict({key: tensor.to(device) for key, tensor in weights.items()})


def prune_checkpoints(root: str, keep: int, keep_also: str) -> None:
    """Remove all but the newest ``keep`` whole checkpoints and ``keep_also``; the manifest goes first.

    Directories without a manifest that are older than what is kept are remains of a cut write and go too.
    """
    names = _names(root)
    whole = [name for name in names if storage.exists(storage.join(root, name, _LAST))]
    kept = {*whole[-keep:], keep_also}
    oldest_kept = min(whole[-keep:], default="")
    fs, inner = storage.filesystem(root)
    for name in names:
        if name in kept or name >= oldest_kept:
            continue
        place = f"{inner.rstrip('/')}/{name}"
        if name in whole:
            fs.rm(f"{place}/{_LAST}")
        fs.rm(place, recursive=True)


def _names(root: str) -> list[str]:
    fs, inner = storage.filesystem(root)
    if not fs.exists(inner):
        return []
    found = [str(p).rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(inner, detail=False)]
    return sorted(name for name in found if name.startswith("step-"))


def _verified(root: str, name: str) -> dict[str, Any] | None:
    """The manifest of a checkpoint if every file is whole, else None."""
    place = storage.join(root, name, _LAST)
    if not storage.exists(place):
        return None
    manifest: dict[str, Any] = json.loads(storage.read_text(place))
    if manifest.get("version") != _VERSION:
        raise CheckpointError(
            f"{place} has version {manifest.get('version')!r}; this release reads version {_VERSION}"
        )
    for file, entry in manifest["files"].items():
        path = storage.join(root, name, file)
        if not storage.exists(path) or storage.sha256_of(path) != entry["sha256"]:
            return None
    return manifest


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors = {f"{index}/{key}": t for index, entry in state["state"].items() for key, t in entry.items()}
    return tensors, {"param_groups": state["param_groups"]}


def _join_optimizer(tensors: dict[str, torch.Tensor], scalars: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": scalars["param_groups"]}
