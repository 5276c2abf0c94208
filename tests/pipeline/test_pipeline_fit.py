"""Which fields a run has, and what they learn before it."""

from __future__ import annotations

import pytest

from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import UsageError
from xmodal_dist.pipeline.fit import fit_fields


def test_a_field_that_is_null_is_left_out_and_the_others_are_what_they_were(tiny_dataset: str) -> None:
    manifest = load_manifest(tiny_dataset)
    everything = fit_fields(tiny_dataset, manifest, {}, 1000)
    rest = fit_fields(tiny_dataset, manifest, {"caption": None}, 1000)
    assert [s.to_json() for s in rest] == [s.to_json() for s in everything if s.name != "caption"]


def test_a_run_without_any_field_is_refused(tiny_dataset: str) -> None:
    manifest = load_manifest(tiny_dataset)
    with pytest.raises(UsageError, match="every field is null"):
        fit_fields(tiny_dataset, manifest, {field.name: None for field in manifest.fields}, 1000)
