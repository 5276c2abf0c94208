from __future__ import annotations

import csv
import hashlib
import io
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal_dist.ingest.demo import write_demo_source
from xmodal_dist.ingest.pack import pack


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_source(tmp_path_factory.mktemp("demo"), seed=0)


def test_records_are_whole_and_some_lack_a_modality(demo: Path) -> None:
    with demo.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 1797
    assert {row["label"] for row in rows} == {str(digit) for digit in range(10)}
    missing = [[not row[c] for c in ("image", "audio", "transcript")] for row in rows]
    assert not any(all(m) for m in missing)
    assert all(0.10 < share < 0.20 for share in np.mean(missing, axis=0))
    first = next(row for row in rows if row["image"] and row["audio"])
    with Image.open(demo.parent / first["image"]) as image:
        assert image.size == (32, 32)
    with wave.open(io.BytesIO((demo.parent / first["audio"]).read_bytes())) as file:
        assert file.getframerate() == 8000
        assert 0.3 <= file.getnframes() / 8000 <= 0.6


def test_equal_seeds_give_equal_files(demo: Path, tmp_path: Path) -> None:
    write_demo_source(tmp_path, seed=1)
    assert _digest(demo.parent) != _digest(tmp_path)
    write_demo_source(tmp_path, seed=0)
    assert _digest(demo.parent) == _digest(tmp_path), "files of another seed are left over"


def test_it_is_made_and_packs_by_inference_in_seconds(tmp_path: Path) -> None:
    begin_s = time.process_time()
    manifest = pack(str(write_demo_source(tmp_path / "raw")), str(tmp_path / "dataset"))
    assert time.process_time() - begin_s < 15
    assert {f.name: f.kind for f in manifest.fields} == {
        "image": "image",
        "audio": "audio",
        "transcript": "text",
    }
    assert manifest.quarantined_rows == 0
    assert {name for s in manifest.splits.values() for name, count in s.missing.items() if count} == {
        "image",
        "audio",
        "transcript",
    }
    assert manifest.source_rows == sum(s.rows for s in manifest.splits.values()) == 1797
    assert [manifest.splits[s].rows for s in ("train", "val", "test")] == [1438, 180, 179]
