from __future__ import annotations

import json
from pathlib import Path

import pytest

from xmodal_dist.dataset.manifest import Manifest, SplitSummary, load_manifest, save_manifest
from xmodal_dist.dataset.schema import Field
from xmodal_dist.errors import DataError, UsageError


def _manifest(**changes: object) -> Manifest:
    values = {
        "fields": (Field(name="x", kind="text", columns=("x",)),),
        "classes": ("ä", "b"),
        "splits": {"train": SplitSummary(rows=3, classes={"ä": 2, "b": 1}, missing={"x": 0})},
        "shards": (),
        "source_rows": 4,
        "quarantined_rows": 1,
        "seed": 0,
        **changes,
    }
    return Manifest.model_validate(values)


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = _manifest(notes=("a note",))
    save_manifest(str(tmp_path), manifest)
    assert load_manifest(str(tmp_path)) == manifest
    assert load_manifest(str(tmp_path)).fingerprint == manifest.fingerprint
    assert '"ä"' in (tmp_path / "manifest.json").read_text(encoding="utf-8")


def test_the_fingerprint_names_the_content() -> None:
    assert _manifest().fingerprint == _manifest().fingerprint
    assert _manifest().fingerprint != _manifest(seed=1).fingerprint


def test_no_dataset_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a packed dataset.*xmodal pack SOURCE"):
        load_manifest(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', '{"version": 1}', "\xff"])
def test_a_damaged_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match="is damaged"):
        load_manifest(str(tmp_path))


def test_another_version_says_what_to_do(tmp_path: Path) -> None:
    save_manifest(str(tmp_path), _manifest())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(DataError, match="version 2; this release reads version 1: pack again"):
        load_manifest(str(tmp_path))


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'source_rows'"):
        _manifest(source_row=3)
