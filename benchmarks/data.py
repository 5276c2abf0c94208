"""The benchmarks' data: generated from a seed, once, and checked by hash whenever it is used again."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness import say

__all__ = [
    "CLASSES",
    "NUM_SHARDS",
    "ImageData",
    "digest_folder",
    "generate_images",
    "once",
    "packed_images",
    "packed_table",
    "repeat_images",
    "tar_images",
]

NUM_SHARDS = 8
CLASSES = ("bird", "cat", "dog", "fish")
_WORDS = ("small", "red", "quiet", "river", "window", "on", "a", "the", "under", "old", "bright", "street")
_ROWS_PER_ROW_GROUP = 64
_QUALITY = 92
_CONTRAST = 42.0
"""Standard deviation of the noise in grey levels; with quality 92 a file is about 115 kB, as in ImageNet."""


class ImageData(NamedTuple):
    """A folder of Parquet shards with columns id, image (JPEG), label, caption.

    Attributes:
        folder: where ``shard-*.parquet`` lie.
        rows: records in all shards.
        digest: of all files; figures of equal digests are of equal data.
    """

    folder: Path
    rows: int
    digest: str

    @property
    def shards(self) -> list[str]:
        """The files in order."""
        return [str(p) for p in sorted(self.folder.glob("shard-*.parquet"))]


def once(folder: Path, recipe: dict[str, object], make: Callable[[Path], None]) -> str:
    """Make a folder unless it is there, from the same recipe and undamaged; returns the digest of its files."""
    note = folder.with_name(folder.name + ".json")
    if note.exists() and folder.is_dir():
        known = json.loads(note.read_text())
        if known["recipe"] == recipe and known["digest"] == digest_folder(folder):
            return str(known["digest"])
        say(f"{folder} is damaged or of an older recipe: making it again")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    make(partial)
    partial.rename(folder)
    digest = digest_folder(folder)
    note.write_text(json.dumps({"recipe": recipe, "digest": digest}))
    return digest


def digest_folder(folder: Path) -> str:
    """SHA-256 over names and contents of all files below a folder, first 16 digits."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(path.relative_to(folder).as_posix().encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:16]


def generate_images(cache: Path, rows: int, size: tuple[int, int] = (500, 375)) -> ImageData:
    """Photograph-like JPEGs: coloured 1/f noise, quality 92.

    Args:
        cache: folder of all benchmark data.
        rows: a multiple of 8 (the number of shards).
        size: width and height in px.
    """
    if rows % NUM_SHARDS:
        raise ValueError(f"{rows} rows: expected a multiple of {NUM_SHARDS}")
    width, height = size
    folder = cache / f"images-{rows}x{width}x{height}"
    recipe: dict[str, object] = {"version": 1, "rows": rows, "size": list(size), "contrast": _CONTRAST}

    def make(target: Path) -> None:
        say(f"generating {rows} images of {width}x{height} in {folder}")
        per_shard = rows // NUM_SHARDS
        jobs = [(target, s, s * per_shard, (s + 1) * per_shard, size) for s in range(NUM_SHARDS)]
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(_write_shard, jobs))

    return ImageData(folder, rows, once(folder, recipe, make))


def _write_shard(job: tuple[Path, int, int, int, tuple[int, int]]) -> None:
    """Encoded images neither compressed nor dictionary-encoded: the cheapest form for every reader."""
    target, shard, start, stop, size = job
    rng = [np.random.default_rng((20, row)) for row in range(start, stop)]
    columns = {
        "id": pa.array([f"r{row:07d}" for row in range(start, stop)]),
        "image": pa.array([_jpeg(r, size) for r in rng], pa.binary()),
        "label": pa.array([CLASSES[int(r.integers(len(CLASSES)))] for r in rng]),
        "caption": pa.array([_caption(r) for r in rng]),
    }
    pq.write_table(
        pa.table(columns),
        target / f"shard-{shard:02d}.parquet",
        row_group_size=_ROWS_PER_ROW_GROUP,
        compression="none",
        use_dictionary=["label"],
    )


def _jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    width, height = size
    planes = [_noise(rng, height, width) for _ in range(3)]
    grey = planes[0]
    # Colours of photographs vary less than their brightness.
    pixels = np.stack([grey + 0.25 * planes[1], grey, grey + 0.25 * planes[2]], axis=-1)
    image = Image.fromarray(np.clip(128 + _CONTRAST * pixels, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """A plane of noise with an amplitude spectrum of 1/f, the statistics of natural scenes; unit variance."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    plane = np.fft.irfft2(spectrum / frequency, s=(height, width))
    normalised: NDArray[np.float32] = (plane / plane.std()).astype(np.float32)
    return normalised


def _caption(rng: np.random.Generator) -> str:
    length = int(np.clip(rng.lognormal(2.3, 0.5), 3, 60))
    return " ".join(rng.choice(_WORDS, length))


def tar_images(cache: Path, images: ImageData) -> list[str]:
    """The same bytes as WebDataset shards; paths in order."""
    folder = cache / f"{images.folder.name}-tar"

    def make(target: Path) -> None:
        say(f"writing tar shards in {folder}")
        for path in images.shards:
            table = pq.read_table(path)
            with tarfile.open(target / (Path(path).stem + ".tar"), "w") as tar:
                for row in table.to_pylist():
                    _add(tar, f"{row['id']}.jpg", row["image"])
                    _add(tar, f"{row['id']}.cls", str(CLASSES.index(row["label"])).encode())

    once(folder, {"version": 2, "of": images.digest}, make)
    return [str(p) for p in sorted(folder.glob("*.tar"))]


def _add(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    tar.addfile(info, io.BytesIO(payload))


def packed_images(cache: Path, images: ImageData, max_image_side_px: int | None) -> str:
    """The same records packed by this project, all in the train split; the dataset's path."""
    from xmodal_dist.dataset.schema import parse_field
    from xmodal_dist.ingest.pack import PackSettings, pack

    suffix = "packed" if max_image_side_px is None else f"packed-{max_image_side_px}"
    folder = cache / f"{images.folder.name}-{suffix}"

    def make(target: Path) -> None:
        say(f"packing {folder}")
        settings = PackSettings(
            split_ratio=(1.0, 0.0, 0.0), shard_bytes=16 << 20, max_image_side_px=max_image_side_px
        )
        fields = [parse_field("image=image:image")]
        pack(str(images.folder), str(target), fields=fields, settings=settings, overwrite=True)

    once(folder, {"version": 1, "of": images.digest, "max_image_side_px": max_image_side_px}, make)
    return str(folder)


def packed_table(cache: Path, rows: int, row_groups: int) -> str:
    """Tiny rows (three numbers, a short category, a label) in row groups of equal size, packed; the dataset's path."""
    from xmodal_dist.dataset.schema import parse_field
    from xmodal_dist.ingest.pack import PackSettings, pack

    folder = cache / f"table-{rows}x{row_groups}-packed"

    def make(target: Path) -> None:
        say(f"packing {folder}")
        rng = np.random.default_rng(rows)
        columns = {
            "id": pa.array([f"r{row:07d}" for row in range(rows)]),
            **{name: pa.array(rng.normal(size=rows)) for name in ("height", "width", "mass")},
            "colour": pa.array(rng.choice(_WORDS, rows)),
            "label": pa.array(rng.choice(CLASSES, rows)),
        }
        source = target.with_name(target.name + "-source.parquet")
        pq.write_table(pa.table(columns), source)
        settings = PackSettings(
            split_ratio=(1.0, 0.0, 0.0), rows_per_row_group=rows // row_groups, row_group_bytes=1 << 30
        )
        fields = [parse_field("row=tabular:height,width,mass,colour")]
        pack(str(source), str(target), fields=fields, settings=settings, overwrite=True)
        source.unlink()

    once(folder, {"version": 1, "rows": rows, "row_groups": row_groups}, make)
    return str(folder)


def repeat_images(cache: Path, images: ImageData, times: int) -> ImageData:
    """A dataset of the same images several times over, each time with ids of their own."""
    folder = cache / f"{images.folder.name}-times-{times}"

    def make(target: Path) -> None:
        for number in range(times):
            for path in images.shards:
                table = pq.read_table(path)
                names = pa.array([f"{name}-{number}" for name in table["id"].to_pylist()])
                target_path = target / f"shard-{number:02d}-{Path(path).stem[-2:]}.parquet"
                pq.write_table(table.set_column(0, "id", names), target_path, compression="none")

    digest = once(folder, {"version": 1, "of": images.digest, "times": times}, make)
    return ImageData(folder, images.rows * times, digest)
