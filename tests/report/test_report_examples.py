"""The records behind errors, within what a page may weigh."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.report import examples


@dataclass(frozen=True)
class _Mistake:
    id: str
    truth: str = "red"
    label: str = "blue"
    probability: float = 0.9


def _ids(tiny_dataset: str) -> list[str]:
    import pyarrow.parquet as pq

    return sorted(pq.read_table(f"{tiny_dataset}/data", columns=["id"]).column("id").to_pylist())


def test_columns_are_named_and_what_does_not_fit_says_so(
    tiny_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, mistakes = load_manifest(tiny_dataset), [_Mistake(i) for i in _ids(tiny_dataset)]
    found = [e for e in examples.find(tiny_dataset, manifest, "test", mistakes) if e.fragments]
    assert len(found) == 15
    assert all("<dt>kind_of_day</dt>" in (e.fragments["weather"] or "") for e in found)
    pictures = [e.fragments["picture"] for e in found if e.fragments["picture"]]
    assert pictures and all(p.startswith("<img") for p in pictures)
    monkeypatch.setattr(examples, "MAX_BYTES", len(pictures[0]) + 600)
    short = [e for e in examples.find(tiny_dataset, manifest, "test", mistakes) if e.fragments]
    kept = sum(len(f or "") for e in short for f in e.fragments.values() if "left out" not in (f or ""))
    assert kept <= examples.MAX_BYTES
    assert any("would make the page too large" in (f or "") for e in short for f in e.fragments.values())
