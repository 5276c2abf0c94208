"""B1, image ingest: JPEGs in Parquet to batches of 64 squares of 224 px.

The centre square of each image is cropped, then resized with antialiasing, as Pillow's ``resize(BILINEAR)`` does. (Its
``resize(box=...)`` is something else: at the edges it blends in pixels from outside the box.) Every side hands over
batches in one of two endings: ``float32``, normalised on the CPU as users of the peers do it, and ``uint8``, which
stops before that, so that only reading, decoding and moving are compared. Ours hands uint8 to the device and
normalises there; the goals hold our uint8 against their float32. Our own ``float32`` ending normalises whole batches
on the CPU, so that both sides hand over the same tensors.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.data import NUM_SHARDS, ImageData, generate_images, packed_images, tar_images
from benchmarks.harness import Figure, Options, Run, Side, compare, require, run_rounds, run_side, say

__all__ = ["run"]

_ROWS = 2048
_SIZE = (500, 375)
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_ENDINGS = ["float32", "uint8"]
_PEERS = {
    "torch DataLoader": "torch_loader",
    "webdataset": "webdataset_loader",
    "Daft": "daft_frame",
    "Ray Data map": "ray_map",
}


class _Variant(NamedTuple):
    """One of ours, and what it promises."""

    name: str
    request: dict[str, Any]
    goals: dict[str, float]
    max_mean_difference: float
    exact: bool


def _variants(whole: str, small: str) -> list[_Variant]:
    exact_goals = {"torch DataLoader": 2.3, "webdataset": 2.5, "Daft": 2.5, "Ray Data map": 2.5}
    fast_goals, packed_goals = dict.fromkeys(_PEERS, 4.0), dict.fromkeys(_PEERS, 7.0)

    def asked(placement: str, decode: str, dataset: str) -> dict[str, Any]:
        return {"placement": placement, "decode": decode, "dataset": dataset}

    # Between the pixels of a dataset packed at 256 and the original's lie another resize and another JPEG pass.
    return [
        _Variant("exact, local", asked("local", "exact", whole), exact_goals, 0.05, True),
        _Variant("exact, ray", asked("ray", "exact", whole), exact_goals, 0.05, True),
        _Variant("fast, local", asked("local", "fast", whole), fast_goals, 3.0, False),
        _Variant("packed at 256, exact, local", asked("local", "exact", small), packed_goals, 8.0, False),
        _Variant("packed at 256, fast, local", asked("local", "fast", small), packed_goals, 8.0, False),
    ]


def run(options: Options) -> list[Figure]:
    """All variants of ours against all peers, in both endings."""
    rows = options.rows or _ROWS
    images = generate_images(options.cache, rows, _SIZE)
    tars = tar_images(options.cache, images)
    variants = _variants(
        packed_images(options.cache, images, None), packed_images(options.cache, images, 256)
    )
    # Half of the data, so that every worker process of every side has work in the warm-up.
    warm = {"warm_shards": NUM_SHARDS // 2, "warm_rows": rows // 2}
    common = {"shards": images.shards, "tars": tars, "size": list(_SIZE), **warm}
    common |= {"endings": _ENDINGS, "keep": None}
    peers = [Side(name, f"benchmarks.peers.{module}", common, True) for name, module in _PEERS.items()]
    ours = [Side(v.name, "benchmarks.ours.images", {**common, **v.request}) for v in variants]
    differences = _check_pixels([*peers, *ours], variants, images, options)
    ids = _all_ids(images)

    def check(side: Side, done: Run) -> None:
        for ending in _ENDINGS:
            require(sorted(done.result["ids"][ending]) == ids, f"{side.name}: not every record exactly once")

    runs = run_rounds([*peers, *ours], options, check)
    figures = []
    for variant in variants:
        own = runs[variant.name]
        for peer in _PEERS:
            other = runs[peer]
            notes = {
                "data": images.digest,
                "pixels": differences[variant.name],
                "peer_pixels": differences[peer],
            }
            for ending, theirs in (("uint8", "float32"), ("uint8", "uint8"), ("float32", "float32")):
                goal = variant.goals[peer] if (ending, theirs) == ("uint8", "float32") else None
                name = f"b1 {variant.name}, {ending} vs {peer}, {theirs}"
                figures.append(compare(name, (own, ending), (other, theirs), rows, goal, notes))
    return figures


def _all_ids(images: ImageData) -> list[str]:
    return sorted(i for path in images.shards for i in pq.read_table(path, columns=["id"])["id"].to_pylist())


def _check_pixels(
    sides: list[Side], variants: list[_Variant], images: ImageData, options: Options
) -> dict[str, dict[str, float]]:
    """Mean and largest difference of every side's pixels to Pillow's, in grey levels; stops where it is too large."""
    reference = _reference(images)
    tolerances = {v.name: (v.max_mean_difference, 1.0 if v.exact else 255.0) for v in variants}
    tolerances |= {name: (0.05, 1.0) for name in _PEERS}
    tolerances["Daft"] = (3.0, 255.0)  # Its resize is another filter.
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, side in enumerate(sides):
            prefix = str(Path(folder) / str(number))
            run_side(Side(side.name, side.module, {**side.request, "keep": prefix}, side.peer), options)
            for ending in _ENDINGS:
                mean, largest = _difference(f"{prefix}.{ending}.npz", ending, reference)
                require(
                    mean <= tolerances[side.name][0] and largest <= tolerances[side.name][1],
                    f"{side.name} ({ending}): pixels differ from Pillow's by {mean:.3f} (mean), {largest:.1f} (max)",
                )
                found[side.name] = {"mean_difference": round(mean, 4), "max_difference": round(largest, 2)}
            say(f"  {side.name}: {found[side.name]} grey levels from Pillow's")
    return found


def _reference(images: ImageData) -> dict[str, NDArray[np.uint8]]:
    """Pillow's pixels of the records that the warm passes read, by id."""
    import io

    from PIL import Image

    pixels = {}
    for path in images.shards:
        table = pq.read_table(path, columns=["id", "image"]).slice(0, 64)
        for row in table.to_pylist():
            image = Image.open(io.BytesIO(row["image"])).convert("RGB")
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            resized = image.crop(box).resize((224, 224), Image.Resampling.BILINEAR)
            pixels[row["id"]] = np.asarray(resized)
    return pixels


def _difference(path: str, ending: str, reference: dict[str, NDArray[np.uint8]]) -> tuple[float, float]:
    with np.load(path) as kept:
        ids, pixels = kept["ids"], kept["pixels"]
    if ending == "float32":
        require(pixels.dtype == np.float32 and pixels.shape[1] == 3, "expected float32 [B, 3, H, W]")
        pixels = (pixels.transpose(0, 2, 3, 1) * _STD + _MEAN) * 255
    shared = [at for at, name in enumerate(ids) if name in reference]
    require(len(shared) >= 16, f"only {len(shared)} records to compare")
    total = largest = 0.0
    for at in shared:
        gap = np.abs(pixels[at].astype(np.float64) - reference[ids[at]])
        total, largest = total + float(gap.mean()), max(largest, float(gap.max()))
    return total / len(shared), round(largest, 3)
