"""Trials of one node decode once: neither augmentation nor encoders make another entry of the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.cache import UnitCache
from xmodal_dist.pipeline.chunks import Schedule
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.pipeline.reader import ChunkReader

AUGMENTED: dict[str, dict[str, Any]] = {
    "picture": {"rotation_deg": 3.0, "encoder": "plain_cnn", "learning_rate_scale": 0.5},
    "caption": {"token_dropout": 0.3},
    "weather": {"value_dropout": 0.0},
}


def test_what_one_trial_decoded_the_next_finds(tiny_dataset: str, tmp_path: Path) -> None:
    manifest = load_manifest(tiny_dataset)
    schedule = Schedule(manifest, 0, 2, 10, 20)
    rows = manifest.splits["train"].rows

    def cached_rows(settings: Mapping[str, Mapping[str, Any]]) -> int:
        specs = fit_fields(tiny_dataset, manifest, settings, 1000)
        reader = ChunkReader(tiny_dataset, specs, schedule, UnitCache(tmp_path, 1 << 30))
        return sum(
            reader.read(chunk).cached_rows for chunk in schedule.chunks("train", 0, 0, 1, augment=True)
        )

    assert cached_rows({}) < rows
    assert cached_rows(AUGMENTED) == rows == cached_rows({})
    assert cached_rows({"picture": {"size_px": 12}}) < rows


def test_what_was_learned_from_the_data_is_learned_again_only_where_it_depends_on_a_setting(
    tiny_dataset: str,
) -> None:
    manifest = load_manifest(tiny_dataset)
    known = fit_fields(tiny_dataset, manifest, {}, 1000)

    def fitted_anew(settings: Mapping[str, Mapping[str, Any]]) -> set[str]:
        fresh = fit_fields(tiny_dataset, manifest, settings, 1000)
        reused = fit_fields(tiny_dataset, manifest, settings, 1000, known)
        assert [s.to_json() for s in reused] == [s.to_json() for s in fresh], (
            "a fit was taken over that was another"
        )
        return {spec.name for spec in reused if not any(_same(spec, other) for other in known)}

    assert fitted_anew({}) == set() == fitted_anew({"caption": {"token_dropout": 0.3}})
    assert fitted_anew({"picture": {"size_px": 12}}) == {"picture"}
    assert fitted_anew({"caption": {"vocab_size": 400}, "picture": {"rotation_deg": 1.0}}) == {"caption"}


def _same(spec: FieldSpec, other: FieldSpec) -> bool:
    return spec.fitted is other.fitted
