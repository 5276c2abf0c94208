from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.pipeline.chunks import ChunkReader
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.pipeline.stream import PipelineSettings, stream_chunks
from xmodal_dist.pipeline.wire import from_table, to_table


@pytest.fixture(scope="module")
def reader(tiny_dataset: str) -> ChunkReader:
    manifest = load_manifest(tiny_dataset)
    specs = fit_fields(tiny_dataset, manifest, {}, 1000)
    return ChunkReader(tiny_dataset, manifest, specs, 3, 6, 2, 6, 1)


def _steps(reader: ChunkReader, epoch: int, num_workers: int, start_step: int = 0) -> list[dict[int, bytes]]:
    """For each global step, record position -> its pixels, over all ranks."""
    steps: list[dict[int, bytes]] = [{} for _ in range(reader.steps("train"))]
    for rank in range(num_workers):
        at = start_step
        per_step = reader.rows_per_step(rank, num_workers)
        for chunk in reader.chunks("train", epoch, rank, num_workers, augment=True, start_step=start_step):
            records = reader.read(chunk).records
            assert len(records) == (chunk.stop_step - chunk.start_step) * per_step
            for start in range(0, len(records), per_step):
                part = records.slice(start, start + per_step)
                real = part.ids >= 0
                assert (part.weights[~real] == 0).all() and (part.labels[~real] == -1).all()
                pixels = next(iter(part.fields["picture"].values()))
                steps[at] |= {int(i): p.tobytes() for i, p in zip(part.ids[real], pixels[real], strict=True)}
                at += 1
        assert at == reader.steps("train")
    return steps


def test_every_record_once_an_epoch_and_global_steps_do_not_depend_on_the_number_of_workers(
    reader: ChunkReader,
) -> None:
    rows = reader.manifest.splits["train"].rows
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
    rows = reader.manifest.splits["val"].rows
    seen = [reader.read(chunk).records.ids for chunk in reader.chunks("val", 0, 0, 1, augment=False)]
    ids = np.concatenate(seen)
    assert sorted(ids[ids >= 0].tolist()) == list(range(rows))


def test_more_workers_than_records_still_step_together(reader: ChunkReader) -> None:
    many = replace(reader, lanes=40, rows_per_lane=1, window_rows=1)
    rows = many.manifest.splits["val"].rows
    assert rows < 40
    ids = []
    for rank in range(40):
        (chunk,) = many.chunks("val", 0, rank, 40, augment=False)
        records = many.read(chunk).records
        assert len(records) == 1
        ids += records.ids.tolist()
    assert sorted(i for i in ids if i >= 0) == list(range(rows))


def test_a_chunk_crosses_the_wire_unchanged(reader: ChunkReader) -> None:
    chunk = reader.read(next(iter(reader.chunks("train", 0, 0, 2, augment=True))))
    back = from_table(to_table(chunk))
    assert back.rejected == chunk.rejected and back.cpu_s == chunk.cpu_s
    for name, arrays in chunk.records.fields.items():
        for key, array in arrays.items():
            assert np.array_equal(back.records.fields[name][key], array)
            assert back.records.fields[name][key].dtype == array.dtype
    for name in ("present", "labels", "weights", "keys", "ids"):
        assert np.array_equal(getattr(back.records, name), getattr(chunk.records, name))


def test_both_placements_give_the_same_chunks_in_the_same_order(
    reader: ChunkReader, ray_session: None
) -> None:
    chunks = [c for epoch in (0, 1) for c in reader.chunks("train", epoch, 0, 2, augment=True)]
    local = list(stream_chunks(reader, chunks, PipelineSettings(placement="local"), 1.0))
    through_ray = list(stream_chunks(reader, chunks, PipelineSettings(placement="ray"), 1.0))
    assert len(local) == len(through_ray) == len(chunks)
    for a, b in zip(local, through_ray, strict=True):
        assert np.array_equal(a.records.ids, b.records.ids)
        assert np.array_equal(a.records.fields["picture"]["pixels"], b.records.fields["picture"]["pixels"])


def test_decoding_in_threads_equals_decoding_in_one(reader: ChunkReader) -> None:
    chunk = next(iter(reader.chunks("train", 0, 0, 1, augment=True)))
    alone, threaded = reader.read(chunk), replace(reader, decode_threads=3).read(chunk)
    assert np.array_equal(
        alone.records.fields["picture"]["pixels"], threaded.records.fields["picture"]["pixels"]
    )
