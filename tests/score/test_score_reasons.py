"""Five in a hundred records broken, in every way there is: each is rejected by its code, the others are scored."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image

from tests.score.runs import score_here
from xmodal_dist.bundle import Bundle, build_model, save_bundle
from xmodal_dist.modalities import load
from xmodal_dist.modalities.fields import FieldSpec, field_settings
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.score import ledger
from xmodal_dist.score.verify import verify_scoring

ROWS = 400
KINDS = {"picture": "image", "photo": "image", "sound": "audio", "words": "text", "size": "tabular"}
RNG = np.random.default_rng(0)


def _png(noise: bool = True) -> bytes:
    pixels = RNG.integers(0, 256 if noise else 1, (24, 24, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG whose header says this size and whose pixels are that stream; checksums are right."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _wav(samples: np.ndarray[Any, np.dtype[np.float32]], rate_hz: int = 8000, kind: str = "PCM_16") -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate_hz, format="WAV", subtype=kind)
    return sink.getvalue()


def _tone() -> bytes:
    return _wav(RNG.normal(0, 0.1, 800).astype(np.float32))


BROKEN: dict[str, tuple[str, Any]] = {
    "media_empty": ("picture", b""),
    "media_unrecognised": ("picture", b"neither picture nor sound"),
    "media_truncated": ("picture", _png()[:-200]),
    "media_unsupported_format": ("picture", b"%PDF-1.7 a document"),
    "media_too_large_decoded": ("picture", _png_of(60_000, 60_000, zlib.compress(b"\0"))),
    "media_decode_error": ("picture", _png_of(24, 24, b"no zlib stream at all" * 90)),
    "uri_not_found": ("photo", "photos/gone.png"),
    "fetch_failed": ("photo", "nosuchscheme://host/photo.png"),
    "audio_zero_length": ("sound", _wav(np.zeros(0, dtype=np.float32))),
    "audio_nonfinite": ("sound", _wav(np.full(800, np.nan, dtype=np.float32), kind="FLOAT")),
    "audio_rate_unsupported": ("sound", _wav(np.zeros(800, dtype=np.float32), rate_hz=100)),
    "text_not_utf8": ("words", b"caf\xe9"),
    "column_type": ("size", "large"),
    "id_missing": ("id", None),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    sample = {
        "picture": pa.array([_png() for _ in range(8)]),
        "photo": pa.array([_png() for _ in range(8)]),
        "sound": pa.array([_tone() for _ in range(8)]),
        "words": pa.array(["a warm and sunny day", "rain"] * 4),
        "size": pa.array([1.0, 2.0, 3.0, 4.0] * 2),
    }
    specs = []
    for name, kind in KINDS.items():
        settings = field_settings(name, kind, {})
        fitted = load(kind).fit(settings, pa.table({name: sample[name]}))
        specs.append(FieldSpec(name, (name,), settings, fitted))
    torch.manual_seed(0)
    model = build_model(specs, 2, ModelSettings(width=16))
    path = str(tmp_path_factory.mktemp("bundle"))
    save_bundle(path, Bundle(tuple(specs), ("cat", "dog"), ModelSettings(width=16), model, {}, {}))
    return path


def test_every_bad_record_has_its_code_and_every_good_one_is_scored(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(_png())
    columns: dict[str, list[Any]] = {
        "id": [f"r{row}" for row in range(ROWS)],
        "picture": [_png() for _ in range(ROWS)],
        "photo": ["photos/a.png"] * ROWS,
        "sound": [_tone() for _ in range(ROWS)],
        "words": [b"a sunny day"] * ROWS,
        "size": [str(row / 100) for row in range(ROWS)],
    }
    expected = {}
    for place, row in enumerate(RNG.permutation(ROWS)[: ROWS // 20].tolist()):
        reason = list(BROKEN)[place % len(BROKEN)]
        column, value = BROKEN[reason]
        columns[column][row] = value
        expected[row] = reason
    types = {"words": pa.binary(), "picture": pa.binary(), "sound": pa.binary()}
    table = pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=50)
    output = str(tmp_path / "out")
    manifest = score_here(
        bundle, [str(tmp_path / "in.parquet")], tmp_path / "out", unit_rows=100, max_bad_fraction=0.06
    )
    assert set(expected.values()) == set(BROKEN)
    quarantined = [
        row for path in Path(output, "quarantine").iterdir() for row in pq.read_table(path).to_pylist()
    ]
    assert {row["row"]: row["reason"] for row in quarantined} == expected
    assert all(row["message"] for row in quarantined)
    assert manifest.rows_ok == ROWS - len(expected)
    scored = ledger.read_predictions(output).column("id").to_pylist()
    assert scored == [f"r{row}" for row in range(ROWS) if row not in expected]
    assert verify_scoring(output, reread_input=True) == (0, 0, [])
