from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from xmodal_dist.bundle import Bundle, build_model, check_files, load_bundle, save_bundle, subsets
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import CheckpointError
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
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    with pytest.raises(CheckpointError, match="version 2; this release reads version 1"):
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
