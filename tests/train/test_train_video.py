"""From folders of clips to predictions on the real path: two classes that only the order of frames tells apart."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal_dist import api

av: Any = pytest.importorskip("av", reason="PyAV makes the clips: pip install 'xmodal-dist[video]'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.soak,
]

SIDE_PX, BAR_PX, STEP_PX = 32, 8, 2


def _clip(rng: np.random.Generator, to_the_right: bool, name: str) -> bytes:
    """A square that moves to the right, or the same backwards: no frame tells which."""
    count = int(rng.integers(6, 11))
    left, top = (int(rng.integers(0, SIDE_PX - BAR_PX - gone + 1)) for gone in (STEP_PX * (count - 1), 0))
    colour, ground = rng.integers(120, 256, 3), rng.integers(0, 90, 3)
    frames = np.tile(ground.astype(np.uint8), (count, SIDE_PX, SIDE_PX, 1))
    for index, frame in enumerate(frames):
        frame[top : top + BAR_PX, left + STEP_PX * index :][:, :BAR_PX] = colour
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=name) as container:
        stream: Any = container.add_stream("gif" if name == "gif" else "mpeg4", rate=10)
        stream.width = stream.height = SIDE_PX
        stream.pix_fmt = "rgb8" if name == "gif" else "yuv420p"
        stream.bit_rate = 400_000
        for frame in frames if to_the_right else frames[::-1]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for index in range(360):
        label, name = ("left", "right")[index % 2], ("gif", "mp4")[index // 2 % 2]
        path = root / "source" / label / f"{index:04d}.{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_clip(rng, label == "right", name))
    target = str(root / "dataset")
    manifest = api.pack(str(root / "source"), target, field=["clip=video"], split_ratio=(0.7, 0.1, 0.2))
    assert manifest.quarantined_rows == 0
    assert [(field["name"], field["kind"]) for field in api.inspect(target).fields] == [("clip", "video")]
    return target


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_the_direction_of_motion_is_learned_where_pooling_sees_the_order(
    dataset: str, tmp_path: Path, pooling: str
) -> None:
    settings = (
        "train.epochs=6",
        "train.batch_size=32",
        "train.lanes=2",
        "train.learning_rate=0.003",
        "model.width=64",
        f"fields.clip.encoder_options={{pooling: {pooling}}}",
        f"pipeline.cache_dir={tmp_path / 'cache'}",
    )
    api.train(dataset, str(tmp_path / "run"), set=settings, num_workers=1)
    metrics = api.evaluate(str(tmp_path / "run" / "bundle"), dataset, str(tmp_path / "evaluation"))
    assert metrics["rows"] == 72
    assert metrics["accuracy"] < 0.7 if pooling == "mean" else metrics["accuracy"] > 0.9
