"""A bundle: a directory that is a whole trained model. JSON, safetensors and tokenizer files; nothing that runs code.

```
spec.json            version, fields (settings and what was fitted), classes, model settings, where it was trained;
                     the task, if that is not multiclass
fields/NAME/FILE     files that a field was fitted with, for example tokenizer.json
weights.safetensors  parameters by name
metrics.json         validation metrics of these weights
calibration.json     how logits become probabilities; not in older bundles, nor where there was no validation split
profile.json         what the training data looked like, to compare other data with; not in older bundles
MANIFEST.json        SHA-256 and size of every file above, and the fingerprint; written last
```
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from xmodal_dist import storage
from xmodal_dist.batch import Batch
from xmodal_dist.calibrate import NOTHING, Calibration
from xmodal_dist.errors import CheckpointError, DataError
from xmodal_dist.modalities.fields import FieldSpec, transform
from xmodal_dist.model.classifier import CrossModalClassifier, ModelSettings
from xmodal_dist.profile import Profile
from xmodal_dist.task import MULTICLASS, Task, TaskName, task_of

__all__ = [
    "Bundle",
    "Prediction",
    "build_model",
    "check_files",
    "load_bundle",
    "save_bundle",
    "save_calibration",
    "subsets",
]

_VERSION = 2
_LAST = "MANIFEST.json"
_METRICS, _PROFILE, _CALIBRATION = "metrics.json", "profile.json", "calibration.json"


class Prediction(NamedTuple):
    """What a model says of B records; float32, on the model's device.

    Attributes:
        logits: [B, C] by name of the mask, as the network gives them; ``""`` is with all fields that a record has.
        probabilities: [B, C] by the same names: softmax (of multilabel sigmoid) of the logits, each record's divided by
            the temperature of the fields that are both shown and there; of the logits as they are if the bundle is not
            calibrated.
        features: [B, M, D] of each field alone; those of the field's stand-in where it is absent.
        embedding: [B, E], what the logits ``""`` were made from.
    """

    logits: dict[str, torch.Tensor]
    probabilities: dict[str, torch.Tensor]
    features: torch.Tensor
    embedding: torch.Tensor


@dataclass(frozen=True)
class Bundle:
    """A trained model in memory.

    Attributes:
        specs: the fields, in the order of ``Batch.present``.
        classes: class names by index.
        settings: settings of the model.
        model: the classifier with its weights.
        metrics: validation metrics of these weights.
        origin: where it was trained: dataset fingerprint, settings, versions.
        fingerprint: SHA-256 over spec, fitted files, weights and calibration; names the model in every output. "" until
            saved.
        profile: what the training data looked like; None where nobody looked.
        calibration: temperatures of the logits and thresholds; None leaves the logits as they are.
        task: what its classes mean.
    """

    specs: tuple[FieldSpec, ...]
    classes: tuple[str, ...]
    settings: ModelSettings
    model: CrossModalClassifier
    metrics: Mapping[str, Any]
    origin: Mapping[str, Any]
    fingerprint: str = ""
    profile: Profile | None = None
    calibration: Calibration | None = None
    task: Task = MULTICLASS

    @torch.inference_mode()
    def predict(self, batch: Batch, masks: Mapping[str, Sequence[bool]]) -> Prediction:
        """Predictions with all fields that a record has, and for every mask given.

        Args:
            batch: decoded records on the model's device.
            masks: by name, which fields to show ([M] bool, in field order); features are computed once.
        """
        self.model.eval()
        batch = transform(self.specs, batch, augment=False)
        features = self.model.encode(batch.inputs, batch.present)
        field_logits = self.model.field_logits(features)
        shown = {"": batch.present}
        for name, mask in masks.items():
            shown[name] = batch.present & torch.tensor(mask, device=batch.present.device)
        logits = {
            name: self.model.fuse(
                features, present, field_logits=field_logits, missing=~batch.present
            ).float()
            for name, present in shown.items()
        }
        probabilities = {
            name: self.task.probabilities(values / self.temperatures(shown[name]))
            for name, values in logits.items()
        }
        embedding = self.model.embed(features, batch.present).float()
        return Prediction(logits, probabilities, features.float(), embedding)

    def require_task(self, task: TaskName, dataset: str) -> None:
        """Refuse a dataset whose labels are of another kind.

        Raises:
            DataError: they are.
        """
        if task != self.task.name:
            raise DataError(
                f"{dataset} is {task}, but the model was trained on a {self.task.name} dataset; take another bundle, "
                f"or pack the source with {'one class a record' if self.task is MULTICLASS else 'lists of classes'}"
            )

    @property
    def class_thresholds(self) -> NDArray[np.float32]:
        """[C] of a multilabel model: from which probability on a record is said to be of each class."""
        found = self.calibration.class_thresholds if self.calibration is not None else ()
        return np.array(found or [0.5] * len(self.classes), dtype=np.float32)

    def temperatures(self, present: torch.Tensor) -> torch.Tensor | float:
        """What logits are divided by before the softmax, [B, 1], for fields [B, M]; 1 without a calibration."""
        if self.calibration is None:
            return 1.0
        masks, temperatures = self._calibrated
        is_it = (present.unsqueeze(1) == masks).all(dim=2)
        found = (is_it * temperatures).sum(dim=1)
        return torch.where(is_it.any(dim=1), found, self.calibration.pooled).unsqueeze(1)

    @cached_property
    def _calibrated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks [S, M] of the subsets that have a temperature, and these [S]; on the model's device."""
        device, names = self.model.stand_ins.device, [s.name for s in self.specs]
        fits = self.calibration.subsets if self.calibration else {}
        masks = [[name in subset.split("+") for name in names] for subset in fits]
        temperatures = torch.tensor([fit.temperature for fit in fits.values()], device=device)
        return torch.tensor(masks, device=device), temperatures


def subsets(specs: Sequence[FieldSpec], *, nothing: bool = False) -> dict[str, list[bool]]:
    """Every non-empty set of fields by name (``image+text``), as masks in field order; single fields first.

    With ``nothing``, also the empty one, before them, called :data:`xmodal_dist.calibrate.NOTHING`.
    """
    names = [s.name for s in specs]
    masks = [[bool(bits >> i & 1) for i in range(len(names))] for bits in range(1, 1 << len(names))]
    masks.sort(key=lambda mask: (sum(mask), [not m for m in mask]))
    named = {"+".join(n for n, shown in zip(names, mask, strict=True) if shown): mask for mask in masks}
    return {NOTHING: [False] * len(names), **named} if nothing else named


def build_model(
    specs: Sequence[FieldSpec], num_classes: int, settings: ModelSettings
) -> CrossModalClassifier:
    """A classifier with fresh weights for some fields."""
    encoders = {s.name: s.modality.encoder(s.settings, s.fitted, settings.width) for s in specs}
    return CrossModalClassifier(encoders, num_classes, settings)


def save_bundle(path: str, bundle: Bundle) -> str:
    """Write a bundle, the manifest last, and return its fingerprint."""
    files = dict(_files(bundle))
    for name, payload in files.items():
        storage.write_bytes(storage.join(path, name), payload)
    return _write_manifest(path, {name: _entry(payload) for name, payload in files.items()})


def save_calibration(path: str, calibration: Calibration) -> str:
    """Give a saved bundle another calibration, and return its new fingerprint.

    The bundle is whole at every moment: first it loses the calibration that it had.

    Raises:
        CheckpointError: not a bundle, or of another version.
    """
    files = _manifest(path)["files"]
    if files.pop(_CALIBRATION, None) is not None:
        _write_manifest(path, files)
    payload = _json(calibration.to_json())
    storage.write_bytes(storage.join(path, _CALIBRATION), payload)
    return _write_manifest(path, {**files, _CALIBRATION: _entry(payload)})


def load_bundle(path: str, device: torch.device | None = None) -> Bundle:
    """Read a bundle and check every file against the manifest.

    Raises:
        CheckpointError: not a bundle, damaged, or of another version.
    """
    manifest = _manifest(path)
    files = {name: storage.read_bytes(storage.join(path, name)) for name in manifest["files"]}
    for name, entry in manifest["files"].items():
        if hashlib.sha256(files[name]).hexdigest() != entry["sha256"]:
            raise CheckpointError(
                f"{storage.join(path, name)} is damaged: its SHA-256 is not the one in {_LAST}"
            )
    spec = json.loads(files["spec.json"])
    fields = tuple(FieldSpec.from_json(f, _fitted_files(files, f["name"])) for f in spec["fields"])
    settings = ModelSettings.model_validate(spec["model"])
    model = build_model(fields, len(spec["classes"]), settings)
    model.load_state_dict(load_tensors(files["weights.safetensors"]))
    model.eval()
    return Bundle(
        specs=fields,
        classes=tuple(spec["classes"]),
        settings=settings,
        model=model.to(device) if device is not None else model,
        metrics=json.loads(files[_METRICS]),
        origin=spec["origin"],
        fingerprint=manifest["fingerprint"],
        profile=Profile.from_json(json.loads(files[_PROFILE])) if _PROFILE in files else None,
        calibration=Calibration.from_json(json.loads(files[_CALIBRATION])) if _CALIBRATION in files else None,
        task=task_of(spec.get("task", MULTICLASS.name)),
    )


def check_files(path: str) -> list[str]:
    """Everything wrong with a bundle's files, in words; empty if it is whole.

    Raises:
        CheckpointError: not a bundle, or of another version.
    """
    manifest, wrong = _manifest(path), []
    for name, entry in manifest["files"].items():
        place = storage.join(path, name)
        if not storage.exists(place):
            wrong.append(f"{place} is missing")
        elif storage.sha256_of(place) != entry["sha256"]:
            wrong.append(f"{place} is damaged: its SHA-256 is not the one in {_LAST}")
    if (
        _fingerprint({name: entry["sha256"] for name, entry in manifest["files"].items()})
        != manifest["fingerprint"]
    ):
        wrong.append(f"{storage.join(path, _LAST)}: the fingerprint is not that of the files")
    return wrong


def _entry(payload: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(payload).hexdigest(), "bytes": len(payload)}


def _write_manifest(path: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the manifest over files that are there, and return the fingerprint."""
    fingerprint = _fingerprint({name: entry["sha256"] for name, entry in files.items()})
    ordered = {name: dict(files[name]) for name in sorted(files)}
    manifest = {"version": _VERSION, "fingerprint": fingerprint, "files": ordered}
    storage.write_bytes(storage.join(path, _LAST), _json(manifest))
    return fingerprint


def _manifest(path: str) -> dict[str, Any]:
    place = storage.join(path, _LAST)
    if not storage.exists(place):
        raise CheckpointError(
            f"{path!r} is not a bundle: it has no {_LAST}. Training writes one to RUN/bundle"
        )
    manifest: dict[str, Any] = json.loads(storage.read_text(place))
    if manifest.get("version") != _VERSION:
        raise CheckpointError(
            f"{place} has version {manifest.get('version')!r}; this release reads version {_VERSION}"
        )
    return manifest


def _files(bundle: Bundle) -> Iterator[tuple[str, bytes]]:
    spec = {
        "version": _VERSION,
        "fields": [s.to_json() for s in bundle.specs],
        "classes": list(bundle.classes),
        "model": bundle.settings.model_dump(mode="json"),
        "origin": dict(bundle.origin),
        **({} if bundle.task is MULTICLASS else {"task": bundle.task.name}),
    }
    yield "spec.json", _json(spec)
    for field in bundle.specs:
        for name, text in field.fitted.files.items():
            yield f"fields/{field.name}/{name}", text.encode()
    weights = {name: t.detach().cpu().contiguous() for name, t in bundle.model.state_dict().items()}
    yield "weights.safetensors", save_tensors(weights)
    yield _METRICS, _json(dict(bundle.metrics))
    if bundle.profile is not None:
        yield _PROFILE, _json(bundle.profile.to_json())
    if bundle.calibration is not None:
        yield _CALIBRATION, _json(bundle.calibration.to_json())


def _fitted_files(files: Mapping[str, bytes], field: str) -> dict[str, str]:
    prefix = f"fields/{field}/"
    return {
        name.removeprefix(prefix): text.decode() for name, text in files.items() if name.startswith(prefix)
    }


def _fingerprint(digests: Mapping[str, str]) -> str:
    # Neither metrics nor profile change a prediction.
    counted = sorted(name for name in digests if name not in (_METRICS, _PROFILE))
    lines = [f"{name} {digests[name]}" for name in counted]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
