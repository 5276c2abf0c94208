from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xmodal_dist.batch import Records
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.errors import XmodalError
from xmodal_dist.pipeline.chunks import Chunk, Schedule
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.pipeline.reader import ChunkReader
from xmodal_dist.pipeline.stream import PipelineSettings, Readers, stream_steps
from xmodal_dist.pipeline.wire import from_table, to_table


@pytest.fixture(scope="module")
def reader(tiny_dataset: str) -> ChunkReader:
    manifest = load_manifest(tiny_dataset)
    specs = fit_fields(tiny_dataset, manifest, {}, 1000)
    return ChunkReader(
        tiny_dataset, specs, Schedule(manifest, seed=3, lanes=6, rows_per_lane=2, window_rows=6)
    )


def _steps(reader: ChunkReader, epoch: int, num_workers: int, start_step: int = 0) -> list[dict[int, bytes]]:
    """For each global step, record position -> its pixels, over all ranks."""
    steps: list[dict[int, bytes]] = [{} for _ in range(reader.schedule.steps("train"))]
    for rank in range(num_workers):
        at = start_step
        per_step = reader.schedule.rows_per_step(rank, num_workers)
        for chunk in reader.schedule.chunks(
            "train", epoch, rank, num_workers, augment=True, start_step=start_step
        ):
            records = reader.read(chunk).records
            assert len(records) == (chunk.stop_step - chunk.start_step) * per_step
            for start in range(0, len(records), per_step):
                part = records.slice(start, start + per_step)
                real = part.ids >= 0
                assert (part.weights[~real] == 0).all() and (part.labels[~real] == -1).all()
                pixels = next(iter(part.fields["picture"].values()))
                steps[at] |= {int(i): p.tobytes() for i, p in zip(part.ids[real], pixels[real], strict=True)}
                at += 1
        assert at == reader.schedule.steps("train")
    return steps


def test_every_record_once_an_epoch_and_global_steps_do_not_depend_on_the_number_of_workers(
    reader: ChunkReader,
) -> None:
    rows = reader.schedule.manifest.splits["train"].rows
    alone = _steps(reader, 0, 1)
    assert Counter(i for step in alone for i in step) == Counter(range(rows))
    for num_workers in (2, 3, 4, 6):
        assert _steps(reader, 0, num_workers) == alone


def test_epochs_have_different_orders_and_the_same_records(reader: ChunkReader) -> None:
    first, second = _steps(reader, 0, 1), _steps(reader, 1, 1)
    assert [set(s) for s in first] != [set(s) for s in second]
    assert set().union(*first) == set().union(*second)


def test_resuming_at_any_step_gives_exactly_the_steps_that_are_left(reader: ChunkReader) -> None:
    whole = _steps(reader, 2, 1)
    for start in range(len(whole)):
        assert _steps(reader, 2, 2, start_step=start)[start:] == whole[start:]


def test_evaluation_reads_every_record_once_and_equally_each_time(reader: ChunkReader) -> None:
    rows = reader.schedule.manifest.splits["val"].rows
    seen = [reader.read(chunk).records.ids for chunk in reader.schedule.chunks("val", 0, 0, 1, augment=False)]
    ids = np.concatenate(seen)
    assert sorted(ids[ids >= 0].tolist()) == list(range(rows))


def test_more_workers_than_records_still_step_together(reader: ChunkReader) -> None:
    many = replace(reader, schedule=replace(reader.schedule, lanes=40, rows_per_lane=1, window_rows=1))
    rows = many.schedule.manifest.splits["val"].rows
    assert rows < 40
    ids = []
    for rank in range(40):
        (chunk,) = many.schedule.chunks("val", 0, rank, 40, augment=False)
        records = many.read(chunk).records
        assert len(records) == 1
        ids += records.ids.tolist()
    assert sorted(i for i in ids if i >= 0) == list(range(rows))


def _assert_equal(a: Records, b: Records) -> None:
    for name, arrays in b.fields.items():
        for key, array in arrays.items():
            assert np.array_equal(a.fields[name][key], array) and a.fields[name][key].dtype == array.dtype
    for name in ("present", "labels", "weights", "keys", "ids"):
        assert np.array_equal(getattr(a, name), getattr(b, name))


def test_a_piece_crosses_the_wire_unchanged(reader: ChunkReader) -> None:
    chunk = reader.read(next(iter(reader.schedule.chunks("train", 0, 0, 2, augment=True))))
    rejected = [Rejected("shard", 3, "id", "picture", "media_truncated", "cut")]
    piece = chunk._replace(rejected=rejected, fallbacks=Counter(slow=2), cached_rows=5)
    back = from_table(to_table(piece))
    assert back[1:] == piece[1:]
    _assert_equal(back.records, piece.records)


@pytest.fixture(scope="module")
def two_epochs(reader: ChunkReader) -> list[Chunk]:
    return [c for epoch in (0, 1) for c in reader.schedule.chunks("train", epoch, 0, 2, augment=True)]


@pytest.fixture(scope="module")
def expected(reader: ChunkReader, two_epochs: list[Chunk]) -> list[Records]:
    """The steps of two epochs, read one after the other."""
    rows = reader.schedule.rows_per_step(0, 2)
    return [
        records.slice(start, start + rows)
        for records in (reader.read(chunk).records for chunk in two_epochs)
        for start in range(0, len(records), rows)
    ]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("prefetch_bytes", [1, 1 << 30])
def test_threads_give_the_same_steps_in_order(
    reader: ChunkReader, two_epochs: list[Chunk], expected: list[Records], threads: int, prefetch_bytes: int
) -> None:
    settings = PipelineSettings(placement="local", prefetch_bytes=prefetch_bytes)
    steps = list(stream_steps(reader, two_epochs, settings, Readers(threads)))
    assert len(steps) == len(expected) and {step.placement for step in steps} == {"local"}
    for step, records in zip(steps, expected, strict=True):
        _assert_equal(step.records, records)
    assert sum(step.cpu_s for step in steps) > 0


def test_ray_data_gives_the_same_steps_in_order(
    reader: ChunkReader, two_epochs: list[Chunk], expected: list[Records], ray_session: None
) -> None:
    settings = PipelineSettings(placement="ray")
    steps = list(stream_steps(reader, two_epochs, settings, Readers(1)))
    assert len(steps) == len(expected) and {step.placement for step in steps} == {"ray"}
    for step, records in zip(steps, expected, strict=True):
        _assert_equal(step.records, records)


def test_auto_stays_local_where_no_other_node_could_help(
    reader: ChunkReader, two_epochs: list[Chunk], expected: list[Records]
) -> None:
    steps = list(stream_steps(reader, two_epochs, PipelineSettings(), Readers(1, elsewhere=False)))
    assert [step.placement for step in steps] == ["local"] * len(expected)


def test_auto_goes_over_to_ray_data_when_its_consumer_waits_and_loses_nothing(
    reader: ChunkReader,
    two_epochs: list[Chunk],
    expected: list[Records],
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("xmodal_dist.pipeline.stream._OBSERVED_S", 0.0)
    monkeypatch.setattr("xmodal_dist.pipeline.stream._STARVED_SHARE", -1.0)
    settings = PipelineSettings(prefetch_bytes=1)
    steps = list(stream_steps(reader, two_epochs, settings, Readers(1, elsewhere=True)))
    placements = [step.placement for step in steps]
    assert placements == sorted(placements) and set(placements) == {"local", "ray"}
    for step, records in zip(steps, expected, strict=True):
        _assert_equal(step.records, records)


def test_a_stream_that_is_left_early_stops_its_threads(reader: ChunkReader, two_epochs: list[Chunk]) -> None:
    stream = stream_steps(reader, two_epochs, PipelineSettings(placement="local"), Readers(2))
    next(stream)
    stream.close()
    deadline_s = time.monotonic() + 10
    while any(t.name.startswith(("fetch", "decode")) for t in threading.enumerate()):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_an_error_of_a_reader_thread_reaches_the_consumer(
    reader: ChunkReader, two_epochs: list[Chunk], tmp_path: Path
) -> None:
    gone = replace(reader, dataset=str(tmp_path / "nowhere"))
    with pytest.raises(XmodalError, match="nowhere"):
        list(stream_steps(gone, two_epochs, PipelineSettings(placement="local"), Readers(2)))


def test_the_local_placement_works_without_ray(tiny_dataset: str) -> None:
    program = f"""
import sys
sys.modules["ray"] = None
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.pipeline.chunks import Schedule
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.pipeline.reader import ChunkReader
from xmodal_dist.pipeline.stream import PipelineSettings, Readers, stream_steps
manifest = load_manifest({tiny_dataset!r})
order = Schedule(manifest, seed=3, lanes=1, rows_per_lane=8, window_rows=64)
reader = ChunkReader({tiny_dataset!r}, fit_fields({tiny_dataset!r}, manifest, {{}}, 1000), order)
chunks = order.chunks("train", 0, 0, 1, augment=True)
steps = stream_steps(reader, chunks, PipelineSettings(), Readers(1))
print(sum(int((step.records.ids >= 0).sum()) for step in steps), manifest.splits["train"].rows)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    read, rows = done.stdout.split()
    assert read == rows
