"""Media values: where their bytes come from, what is said when there are none, and how they are made smaller."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xmodal_dist.errors import DataError, DecodeError
from xmodal_dist.ingest.media import ByteSpool, fetch
from xmodal_dist.ingest.pack import PackSettings, pack, read_source


def _image(width: int, height: int, form: str = "PNG", seed: int = 0) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, form)
    return sink.getvalue()


def _tone(rate_hz: int, seconds: float = 0.5, channels: int = 1, frequency_hz: float = 200) -> bytes:
    sink = io.BytesIO()
    time_s = np.arange(int(rate_hz * seconds)) / rate_hz
    wave = 0.5 * np.sin(2 * np.pi * frequency_hz * time_s)
    soundfile.write(sink, np.stack([wave] * channels, axis=1), rate_hz, format="WAV")
    return sink.getvalue()


def _packed(dataset: Path) -> dict[str, dict[str, Any]]:
    files = sorted((dataset / "data").glob("*.parquet"))
    return {row["id"]: row for file in files for row in pq.read_table(file).to_pylist()}


def test_a_value_may_be_a_path_or_a_uri(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a b#1.bin").write_bytes(b"local")
    with fsspec.open("memory://media/a.bin", "wb") as handle:
        handle.write(b"remote")
    folder = str(tmp_path)
    for value in ("sub/a b#1.bin", "./sub/../sub/a b#1.bin", f"{tmp_path}/sub/a b#1.bin"):
        assert fetch(folder, value) == b"local"
    assert fetch("/elsewhere", f"file://{tmp_path}/sub/a b#1.bin") == b"local"
    assert fetch(folder, "memory://media/a.bin") == fetch("memory://media", "a.bin") == b"remote"
    assert fetch(folder, "data:image/png;base64," + base64.b64encode(b"\0inline").decode()) == b"\0inline"


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        ("none.png", "uri_not_found", "'none.png' does not exist"),
        ("memory://media/none.png", "uri_not_found", "'memory://media/none.png' does not exist"),
        ("folder", "fetch_failed", "'folder' cannot be read: Is a directory"),
        ("nosuch://x/y.png", "fetch_failed", "nosuch"),
        ("data:no comma", "fetch_failed", "cannot be read"),
        ("nul\0.png", "fetch_failed", "cannot be read"),
        ("x" * 5000, "fetch_failed", "File name too long"),
    ],
)
def test_a_value_that_cannot_be_had(tmp_path: Path, value: str, reason: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DecodeError) as caught:
        fetch(str(tmp_path), value)
    assert caught.value.reason == reason
    assert message in caught.value.detail
    assert len(caught.value.detail) < 600


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.none(), st.binary(max_size=20)), min_size=1, max_size=300), st.data())
def test_byte_columns_read_back_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes | None], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("spool") / "t.parquet"
    structs = [None if p is None else {"bytes": p, "path": "x"} for p in payloads]
    table = {
        "a": pa.array(payloads, pa.binary()),
        "b": pa.array(structs, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
    }
    pq.write_table(pa.table(table), path, row_group_size=data.draw(st.integers(1, 200)))
    with ByteSpool(read_source(str(path)), ["a", "b"]) as spool:
        for row in data.draw(st.permutations(range(len(payloads)))):
            assert spool.get("a", row) == spool.get("b", row) == payloads[row]


def test_a_path_without_its_bytes_is_not_taken_for_a_missing_value(tmp_path: Path) -> None:
    values = [{"bytes": b"x", "path": "0.png"}] * 200 + [{"bytes": None, "path": "photos/1.png"}]
    pq.write_table(pa.table({"id": range(201), "image": values}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'image' .* the path 'photos/1.png' without its bytes: store"):
        ByteSpool(read_source(str(tmp_path / "t.parquet")), ["image"])


def test_media_of_every_address_pack_alike(tmp_path: Path) -> None:
    """Relative paths, absolute ones, file, memory and data URIs, a large one among them, in one column of a CSV."""
    lines, expected = ["id,label,photo"], {}
    for index in range(20):
        payload = _image(8, 8, seed=index) if index else _image(300, 300)
        name = f"{index}.png"
        (tmp_path / name).write_bytes(payload)
        with fsspec.open(f"memory://photos/{name}", "wb") as handle:
            handle.write(payload)
        inline = "data:image/png;base64," + base64.b64encode(payload).decode()
        forms = (
            f'"{inline}"',
            name,
            f"{tmp_path}/{name}",
            f"file://{tmp_path}/{name}",
            f"memory://photos/{name}",
        )
        lines.append(f"{index},{'ab'[index % 2]},{forms[index % 5]}")
        expected[str(index)] = payload
    (tmp_path / "t.csv").write_text("\n".join(lines))
    manifest = pack(str(tmp_path / "t.csv"), str(tmp_path / "out"))
    assert {f.name: f.kind for f in manifest.fields} == {"photo": "image"}
    assert {record_id: row["photo"] for record_id, row in _packed(tmp_path / "out").items()} == expected


def test_the_quarantine_names_the_broken_file_also_of_class_folders(tmp_path: Path) -> None:
    for index in range(12):
        (tmp_path / "raw" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        place = tmp_path / "raw" / "ab"[index % 2] / str(index)
        place.with_suffix(".png").write_bytes(_image(8, 8)[: 50 if index == 3 else None])
        place.with_suffix(".wav").write_bytes(_tone(8000))
    out = tmp_path / "out"
    pack(str(tmp_path / "raw"), str(out), settings=PackSettings(max_bad_fraction=0.1))
    (bad,) = pq.read_table(out / "quarantine" / "part-00000.parquet").to_pylist()
    assert (bad["id"], bad["field"], bad["reason"]) == ("b/3", "image", "media_truncated")
    assert bad["message"].startswith("'b/3.png': ")


# --- smaller at pack time --------------------------------------------------------------------------------------------


def _media(folder: Path, images: list[bytes], recordings: list[bytes]) -> str:
    table = {
        "id": [str(i) for i in range(len(images))],
        "label": ["ab"[i % 2] for i in range(len(images))],
        "image": images,
        "audio": recordings,
    }
    pq.write_table(pa.table(table), folder / "t.parquet")
    return str(folder / "t.parquet")


def test_images_and_recordings_are_made_smaller_where_asked(tmp_path: Path) -> None:
    images = [_image(24, 12), _image(12, 24, "JPEG"), _image(24, 24, "WEBP"), _image(6, 6), _image(5, 40)] * 2
    recordings = [_tone(16000, channels=2), _tone(16000), _tone(8000), _tone(4000), _tone(44100)] * 2
    source = _media(tmp_path, images, recordings)
    limits = PackSettings(max_image_side_px=6, audio_sample_rate_hz=8000)
    pack(source, str(tmp_path / "out"), settings=limits)
    rows = _packed(tmp_path / "out")
    shown = [Image.open(io.BytesIO(rows[str(i)]["image"])) for i in range(5)]
    assert [(s.size, s.format) for s in shown] == [
        ((12, 6), "PNG"),
        ((6, 12), "JPEG"),
        ((6, 6), "WEBP"),
        ((6, 6), "PNG"),
        ((5, 40), "PNG"),
    ]
    heard = [soundfile.read(io.BytesIO(rows[str(i)]["audio"])) for i in range(5)]
    assert [(len(samples), rate_hz) for samples, rate_hz in heard] == [(4000, 8000)] * 3 + [
        (2000, 4000),
        (4000, 8000),
    ]
    for samples, rate_hz in heard:
        spectrum = np.abs(np.fft.rfft(samples))
        assert np.argmax(spectrum) * rate_hz / len(samples) == pytest.approx(200, abs=3), (
            "the tone is another"
        )
    unchanged = {(str(i), kind) for i in range(5) for kind in ("image", "audio")} - {
        ("0", "image"), ("1", "image"), ("2", "image"), ("0", "audio"), ("1", "audio"), ("4", "audio"),
    }  # fmt: skip
    for record_id, kind in unchanged:
        assert rows[record_id][kind] == {"image": images, "audio": recordings}[kind][int(record_id)]
    pack(source, str(tmp_path / "again"), settings=limits)
    assert _packed(tmp_path / "again") == rows


def test_every_byte_is_kept_where_nothing_is_asked(tmp_path: Path) -> None:
    images, recordings = [_image(40, 30, "JPEG", i) for i in range(10)], [_tone(44100, channels=2)] * 10
    pack(_media(tmp_path, images, recordings), str(tmp_path / "out"))
    rows = _packed(tmp_path / "out")
    assert [rows[str(i)]["image"] for i in range(10)] == images
    assert [rows[str(i)]["audio"] for i in range(10)] == recordings
