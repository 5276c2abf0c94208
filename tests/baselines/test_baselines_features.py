"""Features: aligned with rows, a function of each row alone, and about the right things."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.baselines.lidar import ClipModality
from xmodal_dist.baselines.features import TEXTS, extract, picture_features
from xmodal_dist.baselines.rows import join, read_split
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities.audio import AudioSettings
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.fit import fit_fields

RATE_HZ = 8000


@pytest.fixture(scope="module")
def tiny(tiny_dataset):
    manifest = load_manifest(tiny_dataset)
    return tiny_dataset, manifest, fit_fields(tiny_dataset, manifest, {}, 1000)


def _stored(dataset, manifest, split):
    return pa.concat_tables([pq.read_table(f"{dataset}/{s.path}") for _, s in manifest.split_shards(split)])


def test_rows_are_those_of_the_split_in_order(tiny):
    dataset, manifest, specs = tiny
    found = join(list(read_split(dataset, manifest, "train", specs, manifest.classes, None)))
    stored = _stored(dataset, manifest, "train")
    assert found.ids == stored["id"].to_pylist()
    assert [manifest.classes[c] for c in found.labels] == stored["label"].to_pylist()
    assert found.rejected == 0
    for spec in specs:
        missing = [
            all(v is None for v in row.values()) for row in stored.select(list(spec.columns)).to_pylist()
        ]
        assert found.present[spec.name].tolist() == [not m for m in missing]
        assert all(len(block) == 120 for block in found.fields[spec.name].values())
    assert found.fields["caption"][TEXTS].tolist() == [v or "" for v in stored["caption"].to_pylist()]
    heights = np.array([np.nan if v is None else v for v in stored["height"].to_pylist()])
    order = np.argsort(found.fields["weather"]["numbers"][~np.isnan(heights), 0], kind="stable")
    assert (np.diff(heights[~np.isnan(heights)][order]) >= 0).all()


def test_a_sample_is_some_of_the_rows_unchanged_and_always_the_same(tiny):
    dataset, manifest, specs = tiny
    whole = join(list(read_split(dataset, manifest, "train", specs, manifest.classes, None)))
    some, again = (
        join(list(read_split(dataset, manifest, "train", specs, manifest.classes, 37))) for _ in range(2)
    )
    assert len(set(some.ids)) == 37 and some.ids == again.ids
    places = [whole.ids.index(record) for record in some.ids]
    assert places == sorted(places) and some.labels.tolist() == whole.labels[places].tolist()
    for field, blocks in some.fields.items():
        for name, block in blocks.items():
            np.testing.assert_array_equal(block, whole.fields[field][name][places])


def test_a_record_that_cannot_be_decoded_is_counted(tiny, tmp_path):
    dataset, manifest, specs = tiny
    stored = _stored(dataset, manifest, "val")
    pictures = stored["picture"].to_pylist()
    bad = next(i for i, value in enumerate(pictures) if value is not None)
    pictures[bad] = b"\x89PNG\r\n\x1a\n, and then nothing"
    at = stored.column_names.index("picture")
    pq.write_table(stored.set_column(at, "picture", pa.array(pictures)), tmp_path / "a.parquet")
    shard = next(s for _, s in manifest.split_shards("val"))
    group = shard.row_groups[0].model_copy(update={"rows": stored.num_rows})
    damaged = shard.model_copy(update={"path": "a.parquet", "rows": stored.num_rows, "row_groups": (group,)})
    other = manifest.model_copy(update={"shards": (damaged,)})
    found = join(list(read_split(str(tmp_path), other, "val", specs, manifest.classes, None)))
    assert found.rejected == 1 and len(found.ids) == stored.num_rows - 1
    assert stored["id"][bad].as_py() not in found.ids
    with pytest.raises(DataError, match="which is no class of the bundle"):
        list(read_split(dataset, manifest, "val", specs, ["red", "green"], None))


def test_gradients_are_told_by_direction():
    pixels = np.zeros((4, 64, 64, 3), dtype=np.uint8)
    pixels[1, :, 32:] = 255  # an upright edge: its gradient is level, orientation 0
    pixels[2, 32:] = 255
    pixels[3] = 77
    hog = picture_features(pixels)["hog"].reshape(4, -1, 9).sum(axis=1)
    assert hog[0].sum() == hog[3].sum() == 0
    assert hog[1, 0] > 10 and hog[1, 1:].sum() == pytest.approx(0, abs=1e-4)
    # A right angle lies halfway between bins 4 and 5 of 9.
    assert hog[2].argmax() in (4, 5) and hog[2, [4, 5]].sum() == pytest.approx(hog[2].sum(), rel=1e-4)


@pytest.mark.parametrize("side_px", [8, 28, 64, 90])
def test_pictures_of_any_size_give_the_same_non_negative_features(side_px):
    rng = np.random.default_rng(side_px)
    pixels = rng.integers(0, 256, (5, side_px, side_px, 3), dtype=np.uint8)
    blocks = picture_features(pixels)
    assert {name: block.shape for name, block in blocks.items()} == {
        "hog": (5, 1764), "pixels": (5, 432), "colours": (5, 64)
    }  # fmt: skip
    for name, block in blocks.items():
        assert block.min() >= 0 and np.isfinite(block).all()
        np.testing.assert_allclose(block[2:3], picture_features(pixels[2:3])[name], atol=1e-6)
    np.testing.assert_allclose(np.square(blocks["colours"]).sum(axis=1), 1, rtol=1e-4)


def _sound(seconds, scale=0.3, num_samples=RATE_HZ):
    at = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    wave = np.sin(2 * np.pi * (300 + 900 * at) * at) * scale * 32767
    samples = np.zeros(num_samples, dtype=np.int16)
    samples[: len(wave)] = wave
    return samples, len(wave)


def test_sound_is_described_without_its_volume_and_padding():
    settings = AudioSettings(num_mels=32)
    spec = FieldSpec(
        "audio", ("audio",), settings, Fitted({"sample_rate_hz": RATE_HZ, "num_samples": RATE_HZ})
    )
    cases = [
        _sound(0.5),
        _sound(0.5, 0.15),
        _sound(0.5, num_samples=RATE_HZ),
        _sound(0.9),
        (np.zeros(RATE_HZ), 0),
    ]
    samples = np.array([case[0] for case in cases], dtype=np.int16)
    length = np.array([case[1] for case in cases], dtype=np.int32)
    blocks = extract(spec, {"samples": samples, "length": length}, [])
    assert {name: block.shape[1] for name, block in blocks.items()} == {
        "mean": 32, "deviation": 32, "quarters": 128
    }  # fmt: skip
    cut = extract(spec, {"samples": samples[:1, :4000], "length": length[:1]}, [])
    for name, block in blocks.items():
        assert np.isfinite(block).all()
        np.testing.assert_allclose(block[0], block[1], atol=0.02)
        np.testing.assert_allclose(block[0], cut[name][0], atol=1e-4)
        assert np.abs(block[0] - block[3]).max() > 0.1


def _clips(values):
    spec = FieldSpec("clip", ("clip",), ClipModality.settings(), Fitted())
    columns = [pa.array(values)]
    arrays = ClipModality().decode(spec.settings, spec.fitted, columns, None).arrays
    return spec, arrays, columns


def test_a_kind_that_is_unknown_here_is_described_by_its_pictures_and_measures(monkeypatch):
    spec, arrays, columns = _clips([5, 200, None])
    blocks = extract(spec, arrays, columns)
    np.testing.assert_allclose(blocks["frames pixels mean"][:, 0], np.array([5, 200, 0]) / 255, rtol=1e-5)
    np.testing.assert_allclose(blocks["frames pixels deviation"], 0, atol=1e-6)
    assert blocks["points"].tolist() == [[2, 0], [0, 1], [2, 0]]
    monkeypatch.setattr(ClipModality, "measures", lambda *arguments: {})
    with pytest.raises(UsageError, match="leave it out with --fields"):
        extract(spec, {"spikes": np.zeros((3, 4), np.float32)}, columns)
