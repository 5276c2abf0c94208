"""The cache of decoded row groups: exact, bounded, shared, and never the wrong entry."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import UsageError
from xmodal_dist.pipeline.cache import UnitCache
from xmodal_dist.pipeline.chunks import Schedule
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.pipeline.reader import ChunkReader


def _table(value: int, rows: int = 100) -> pa.Table:
    return pa.table({"x": np.full(rows, value, dtype=np.int64)})


def _never() -> pa.Table:
    raise AssertionError("decoded although it was there")


def test_what_is_there_is_not_made_again_also_by_another_process(tmp_path: Path) -> None:
    made = UnitCache(tmp_path, 1 << 20).get_or_add(["a", 1], lambda: _table(7))
    again = UnitCache(tmp_path, 1 << 20).get_or_add(["a", 1], _never)
    assert (made.hit, again.hit) == (False, True)
    assert made.table.equals(again.table) and again.table.equals(_table(7))


@pytest.mark.parametrize("other", [["a", 2], ["b", 1], ["a", "1"], [["a"], 1], ["a", 1, None]])
def test_another_key_never_hits(tmp_path: Path, other: list[object]) -> None:
    cache = UnitCache(tmp_path, 1 << 20)
    cache.get_or_add(["a", 1], lambda: _table(7))
    assert not cache.get_or_add(other, lambda: _table(8)).hit


def test_the_size_is_bounded_and_a_full_cache_keeps_what_it_has(tmp_path: Path) -> None:
    cache = UnitCache(tmp_path, 5_000)
    for number in range(20):
        assert cache.get_or_add([number], lambda n=number: _table(n)).table.equals(_table(number))
    stored = [path.stat().st_size for path in tmp_path.rglob("*.arrow")]
    assert len(stored) >= 2 and sum(stored) <= 5_000 + 2 * 1_000  # an Arrow file's own framing
    hits = [cache.get_or_add([number], lambda n=number: _table(n)).hit for number in range(20)]
    assert sum(hits) == len(stored), "every epoch finds the same share"


def test_what_nobody_uses_any_more_makes_room(tmp_path: Path) -> None:
    UnitCache(tmp_path, 5_000).get_or_add(["old"], lambda: _table(1, 400))
    (old,) = tmp_path.rglob("*.arrow")
    os.utime(old, (time.time() - 100, time.time() - 100))
    cache = UnitCache(tmp_path, 5_000)
    cache.get_or_add(["new"], lambda: _table(2, 400))
    assert not old.exists()
    assert cache.get_or_add(["new"], _never).hit


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    cache = UnitCache(tmp_path, 1 << 20)
    cache.get_or_add(["a"], lambda: _table(7))
    (entry,) = tmp_path.rglob("*.arrow")
    entry.write_bytes(entry.read_bytes()[:40])
    found = cache.get_or_add(["a"], lambda: _table(7))
    assert not found.hit and found.table.equals(_table(7))
    assert cache.get_or_add(["a"], _never).hit


def test_of_several_that_want_an_entry_at_once_one_makes_it(tmp_path: Path) -> None:
    program = f"""
import sys, time
import numpy as np, pyarrow as pa
from xmodal_dist.pipeline.cache import UnitCache
def make():
    print("made", flush=True)
    time.sleep(0.3)
    return pa.table({{"x": np.arange(1000)}})
found = UnitCache({str(tmp_path)!r}, 1 << 20).get_or_add(["a"], make)
assert found.table.column("x").to_pylist() == list(range(1000))
"""
    with ThreadPoolExecutor(4) as pool:
        runs = list(
            pool.map(
                lambda _: subprocess.run(
                    [sys.executable, "-c", program], capture_output=True, text=True, check=True
                ),
                range(4),
            )
        )
    assert sum(run.stdout.count("made") for run in runs) == 1


def test_a_full_disk_costs_the_entry_not_the_run(tmp_path: Path) -> None:
    program = f"""
import resource
import numpy as np, pyarrow as pa
from xmodal_dist.pipeline.cache import UnitCache
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
found = UnitCache({str(tmp_path)!r}, 1 << 30).get_or_add(["a"], lambda: pa.table({{"x": np.arange(10_000)}}))
assert not found.hit and found.table.num_rows == 10_000
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stderr
    assert not list(tmp_path.rglob("*.arrow")) and not list(tmp_path.rglob("*.tmp"))


def test_a_directory_that_cannot_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="pipeline.cache_dir"):
        UnitCache(tmp_path / "file" / "cache", 1 << 20).get_or_add(["a"], _never)


def test_records_from_the_cache_equal_those_decoded_anew(tiny_dataset: str, tmp_path: Path) -> None:
    manifest = load_manifest(tiny_dataset)
    order = Schedule(manifest, seed=3, lanes=2, rows_per_lane=4, window_rows=12)
    specs = fit_fields(tiny_dataset, manifest, {}, 1000)
    plain = ChunkReader(tiny_dataset, specs, order)
    seen = []
    for _ in range(2):  # the first fills the cache, the second finds everything there
        cached = ChunkReader(tiny_dataset, specs, order, UnitCache(tmp_path, 1 << 30))
        rows = 0
        for epoch in (0, 1):
            for chunk in order.chunks("train", epoch, 0, 1, augment=True):
                ours, theirs = cached.read(chunk), plain.read(chunk)
                rows += ours.cached_rows
                assert np.array_equal(ours.records.ids, theirs.records.ids)
                for name, arrays in theirs.records.fields.items():
                    for key, array in arrays.items():
                        assert np.array_equal(ours.records.fields[name][key], array)
        seen.append(rows)
    total = manifest.splits["train"].rows
    assert total <= seen[0] < 2 * total and seen[1] == 2 * total
