from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from xmodal_dist import storage
from xmodal_dist.batch import Batch
from xmodal_dist.bundle import (
    Bundle,
    build_model,
    check_files,
    load_bundle,
    save_bundle,
    save_calibration,
    subsets,
)
from xmodal_dist.calibrate import NOTHING, Calibration, Cutoff, SubsetFit
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import CheckpointError, StorageError
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.chunks import Schedule
from xmodal_dist.pipeline.fit import decode_sample, fit_fields
from xmodal_dist.pipeline.reader import ChunkReader
from xmodal_dist.profile import fit_profile


@pytest.fixture(scope="module")
def bundle(tiny_dataset: str) -> Bundle:
    manifest = load_manifest(tiny_dataset)
    specs = fit_fields(tiny_dataset, manifest, {}, 1000)
    settings = ModelSettings(width=16)
    torch.manual_seed(1)
    model = build_model(specs, len(manifest.classes), settings)
    return Bundle(specs, manifest.classes, settings, model, {"val": {"accuracy": 0.5}}, {"dataset": "x"})


def test_a_loaded_bundle_predicts_what_the_saved_one_did(
    bundle: Bundle, tiny_dataset: str, tmp_path: Path
) -> None:
    fingerprint = save_bundle(str(tmp_path), bundle)
    loaded = load_bundle(str(tmp_path))
    assert (
        loaded.fingerprint == fingerprint
        and loaded.classes == bundle.classes
        and loaded.specs == bundle.specs
    )
    order = Schedule(load_manifest(tiny_dataset), 0, 1, 8, 8)
    reader = ChunkReader(tiny_dataset, loaded.specs, order)
    batch = reader.read(next(order.chunks("test", 0, 0, 1, augment=False))).records.to_batch()
    masks = subsets(bundle.specs)
    ours, theirs = bundle.predict(batch, masks), loaded.predict(batch, masks)
    assert list(ours.logits) == ["", *masks]
    for name, logits in ours.logits.items():
        assert torch.equal(logits, theirs.logits[name]) and logits.shape == (len(batch), 3)
    assert torch.equal(ours.logits[""], ours.logits["+".join(s.name for s in bundle.specs)])
    assert torch.equal(ours.features, theirs.features) and ours.features.shape == (len(batch), 3, 16)
    assert torch.equal(ours.embedding, theirs.embedding) and len(ours.embedding) == len(batch)


def test_subsets_are_all_non_empty_sets_single_fields_first(bundle: Bundle) -> None:
    found = subsets(bundle.specs)
    assert len(found) == 7 and list(found)[:3] == [s.name for s in bundle.specs]
    for name, mask in found.items():
        assert name == "+".join(s.name for s, on in zip(bundle.specs, mask, strict=True) if on)


def test_equal_bundles_have_equal_fingerprints_and_other_weights_another(
    bundle: Bundle, tmp_path: Path
) -> None:
    first = save_bundle(str(tmp_path / "a"), bundle)
    assert save_bundle(str(tmp_path / "b"), bundle) == first
    with torch.no_grad():
        next(bundle.model.parameters()).add_(1e-3)
    assert save_bundle(str(tmp_path / "c"), bundle) != first


def test_a_damaged_bundle_is_refused_and_named(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(str(tmp_path), bundle)
    assert check_files(str(tmp_path)) == []
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        load_bundle(str(tmp_path))
    assert len(check_files(str(tmp_path))) == 1


def test_what_is_no_bundle_or_of_another_version_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a bundle"):
        load_bundle(str(tmp_path / "nothing"))
    save_bundle(str(tmp_path), bundle)
    manifest = tmp_path / "MANIFEST.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 3}))
    with pytest.raises(CheckpointError, match="version 3; this release reads version 2"):
        load_bundle(str(tmp_path))


def test_a_bundle_holds_no_pickle(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(str(tmp_path), bundle)
    names = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert names <= {".json", ".safetensors"}


def test_a_profile_is_carried_and_is_no_part_of_the_fingerprint(
    bundle: Bundle, tiny_dataset: str, tmp_path: Path
) -> None:
    manifest = load_manifest(tiny_dataset)
    sample = decode_sample(tiny_dataset, manifest, bundle.specs, 100)
    profile = fit_profile(bundle.specs, sample, manifest.splits["train"].classes)
    without = save_bundle(str(tmp_path / "a"), bundle)
    assert save_bundle(str(tmp_path / "b"), dataclasses.replace(bundle, profile=profile)) == without
    assert load_bundle(str(tmp_path / "a")).profile is None
    assert load_bundle(str(tmp_path / "b")).profile == profile
    assert check_files(str(tmp_path / "b")) == []
    damaged = tmp_path / "b" / "profile.json"
    damaged.write_text(damaged.read_text().replace("1", "2", 1))
    with pytest.raises(CheckpointError, match=r"profile\.json is damaged"):
        load_bundle(str(tmp_path / "b"))


# --- calibration -----------------------------------------------------------------------------------------------------


def _calibration(**temperatures: float) -> Calibration:
    fits = {
        name.replace("_and_", "+"): SubsetFit(t, 9, 0.2, 0.1, 0.9, 0.8) for name, t in temperatures.items()
    }
    whole = SubsetFit(1.5, 9, 0.2, 0.1, 0.9, 0.8)
    return Calibration(fits, 1.5, whole, (Cutoff(0.2, 9, 7), Cutoff(0.9, 3, 3)), "d" * 64, "val")


def _some_records(bundle: Bundle, dataset: str) -> Batch:
    order = Schedule(load_manifest(dataset), 0, 1, 64, 64)
    reader = ChunkReader(dataset, bundle.specs, order)
    return reader.read(next(order.chunks("train", 0, 0, 1, augment=False))).records.to_batch()


def test_logits_are_divided_by_the_temperature_of_the_fields_that_are_shown_and_there(
    bundle: Bundle, tiny_dataset: str
) -> None:
    temperatures = {"picture": 0.5, "picture_and_caption_and_weather": 3.0, "caption_and_weather": 2.0}
    calibrated = dataclasses.replace(bundle, calibration=_calibration(**temperatures))
    batch = _some_records(bundle, tiny_dataset)
    masks = subsets(bundle.specs, nothing=True)
    plain, found = bundle.predict(batch, masks), calibrated.predict(batch, masks)
    of = {"picture": 0.5, "picture+caption+weather": 3.0, "caption+weather": 2.0}
    met = set()
    for name, logits in found.logits.items():
        assert torch.equal(logits, plain.logits[name]), "logits stay as they are"
        assert torch.equal(plain.probabilities[name], logits.softmax(dim=-1))
        for row, has in enumerate(batch.present.tolist()):
            shown = masks.get(name, [True] * 3)
            left = [s.name for s, a, b in zip(bundle.specs, shown, has, strict=True) if a and b]
            met.add("+".join(left))
            expected = (logits[row] / of.get("+".join(left), 1.5)).softmax(dim=-1)
            assert torch.allclose(found.probabilities[name][row], expected, atol=1e-6)
        assert torch.equal(found.probabilities[name].argmax(dim=1), logits.argmax(dim=1))
    assert met >= {*of, ""} and NOTHING in found.probabilities


def test_a_calibration_is_carried_and_is_part_of_the_fingerprint(bundle: Bundle, tmp_path: Path) -> None:
    without, first, second = (str(tmp_path / name) for name in "abc")
    one, other = _calibration(picture=0.5), _calibration(picture=0.6)
    fingerprints = {
        save_bundle(path, dataclasses.replace(bundle, calibration=calibration))
        for path, calibration in ((without, None), (first, one), (second, other))
    }
    assert len(fingerprints) == 3
    assert load_bundle(without).calibration is None and load_bundle(first).calibration == one
    assert check_files(first) == []
    place = tmp_path / "b" / "calibration.json"
    place.write_text(place.read_text().replace("0.5", "0.7", 1))
    with pytest.raises(CheckpointError, match=r"calibration\.json is damaged"):
        load_bundle(first)


def test_a_saved_bundle_takes_another_calibration_and_is_whole_at_every_moment(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "bundle")
    plain = save_bundle(path, bundle)
    one, other = _calibration(picture=0.5), _calibration(picture=0.6)
    first = save_calibration(path, one)
    assert first == save_bundle(str(tmp_path / "at once"), dataclasses.replace(bundle, calibration=one))
    written = storage.write_bytes
    for stop_at in (1, 2, 3):  # manifest without, calibration, manifest with
        save_calibration(path, one)
        calls = []

        def failing(place: str, payload: bytes, calls: list[str] = calls, stop_at: int = stop_at) -> None:
            calls.append(place)
            if len(calls) == stop_at:
                raise StorageError("the disk is full")
            written(place, payload)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_bytes", failing)
            with pytest.raises(StorageError):
                save_calibration(path, other)
        assert check_files(path) == []
        assert load_bundle(path).fingerprint == (first if stop_at == 1 else plain)
    assert save_calibration(path, other) == load_bundle(path).fingerprint not in (plain, first)
    assert load_bundle(path).calibration == other
