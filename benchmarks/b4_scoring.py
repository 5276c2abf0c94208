"""B4, scoring end to end: images that are mostly decoding, one small model, predictions in Parquet at the end.

Every side starts its workers anew for each run, and those of Ray Data and ours cannot be kept from one to the next. So
a record's cost is the difference of two runs of one process, over few records and over several times as many; what is
left of our shorter run is in the notes as the cost of a run. The same weights are used by all, ours from the bundle,
theirs from a ``torch.jit`` program; before anything counts, every record's probabilities are held against ours.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.data import CLASSES, generate_images
from benchmarks.harness import Figure, Options, Run, Side, figure_of, require, run_rounds, run_side, say
from benchmarks.scoring_data import MEAN, SIZE_PX, STD, ScoringData, make_scoring_data

__all__ = ["run"]

_ROWS = 1024
_SETTINGS = {"top_k": 0, "modalities": False, "probabilities": True, "threads": 1}
_OURS = ("ray", "local")
_PEERS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "naive Ray Data": ("ray_scoring", {"style": "naive"}, 3.0),
    "tuned Ray Data": ("ray_scoring", {"style": "tuned"}, 1.5),
    "Daft": ("daft_scoring", {}, 2.5),
    "DataLoader loop": ("torch_scoring", {}, None),
}
_MIN_SHARE = 0.90
# Pillow's pixels are ours within a level; Daft's resize is another filter. Logits have a deviation of 1.
_TOLERANCE = {"Daft": 0.1}
_USUAL_TOLERANCE = 0.01


def run(options: Options) -> list[Figure]:
    """Both of ours against the bound and all peers."""
    rows = options.rows or _ROWS
    images = generate_images(options.cache, rows)
    data = make_scoring_data(options.cache, images)
    with tempfile.TemporaryDirectory(dir=options.cache) as folder:
        sides = _sides(data, folder)
        reference = _probabilities(run_side(sides[1], options).result["many"], rows * data.copies)
        require(
            bool(np.ptp(list(reference.values()), axis=0).min() > 0.2),
            "the model tells no image from another",
        )
        _empty(folder)
        gaps: dict[str, float] = {}

        def check(side: Side, done: Run) -> None:
            for name, copies in (("few", 1), ("many", data.copies)):
                if name in done.result:
                    found = _probabilities(done.result[name], rows * copies)
                    gaps[side.name] = _compare(side.name, found, reference)
            _empty(folder)

        runs = run_rounds(sides, options, check)
    say(
        "  largest difference of a probability from ours: "
        + ", ".join(f"{n} {g:.4f}" for n, g in gaps.items())
    )
    figures = [_share(name, runs, rows, data.copies) for name in _OURS]
    for name in _OURS:
        for peer, (_, _, goal) in _PEERS.items():
            notes = {"data": images.digest, "largest_difference": round(gaps[peer], 5)}
            hoped = goal if name == "ray" else None
            figures.append(_against((name, peer), runs, rows, data.copies, hoped, notes))
    return figures


def _empty(folder: str) -> None:
    shutil.rmtree(folder)
    Path(folder).mkdir()


def _sides(data: ScoringData, folder: str) -> list[Side]:
    files = {"few": data.few, "many": data.many, "folder": folder}
    ours = {**files, "bundle": data.bundle, "settings": _SETTINGS}
    theirs = {
        **files,
        "program": data.program,
        "size_px": SIZE_PX,
        "mean": MEAN,
        "std": STD,
        "classes": CLASSES,
    }
    return [
        *(Side(name, "benchmarks.ours.scoring", {**ours, "placement": name}) for name in _OURS),
        Side("stages", "benchmarks.ours.scoring_stages", ours),
        *(
            Side(name, f"benchmarks.peers.{module}", {**theirs, **more}, peer=True)
            for name, (module, more, _) in _PEERS.items()
        ),
    ]


def _probabilities(folder: str, rows: int) -> dict[str, NDArray[np.float32]]:
    """By id; a record that occurs several times must have been told the same each time."""
    table = pq.read_table(folder, columns=["id", "label", "probability", "probabilities"])
    require(table.num_rows == rows, f"{folder}: {table.num_rows} records of {rows}")
    values = np.array(table.column("probabilities").to_pylist(), dtype=np.float32)
    ids = table.column("id").to_pylist()
    found: dict[str, NDArray[np.float32]] = {}
    for name, row in zip(ids, values, strict=True):
        require(
            np.allclose(found.setdefault(name, row), row, atol=1e-5), f"{folder}: {name} differs from itself"
        )
    best = [CLASSES[place] for place in values.argmax(axis=1)]
    require(table.column("label").to_pylist() == best, f"{folder}: labels are not the most probable classes")
    require(
        len(set(ids)) * (rows // len(set(ids))) == rows, f"{folder}: not every record as often as another"
    )
    return found


def _compare(
    side: str, found: dict[str, NDArray[np.float32]], reference: dict[str, NDArray[np.float32]]
) -> float:
    require(found.keys() == reference.keys(), f"{side}: other records than ours")
    gap = max(float(np.abs(found[name] - reference[name]).max()) for name in reference)
    most = _TOLERANCE.get(side, _USUAL_TOLERANCE)
    require(gap <= most, f"{side}: a probability differs by {gap:.4f} from ours, more than {most}")
    return gap


def _slopes(runs: Sequence[Run], rows: int, copies: int) -> list[float]:
    """CPU-milliseconds of a record, run by run."""
    more = rows * (copies - 1)
    return [(r.regions["many"].cpu_s - r.regions["few"].cpu_s) * 1e3 / more for r in runs]


def _cost_of_a_run(runs: Sequence[Run], slopes: Sequence[float], rows: int) -> float:
    """CPU-seconds that do not grow with the records."""
    fixed = [r.regions["few"].cpu_s - s * rows / 1e3 for r, s in zip(runs, slopes, strict=True)]
    return round(statistics.median(fixed), 2)


def _share(name: str, runs: dict[str, list[Run]], rows: int, copies: int) -> Figure:
    own = _slopes(runs[name], rows, copies)
    stages = [r.result["cpu_ms"] for r in runs["stages"]]
    values = [sum(stage.values()) / mine for stage, mine in zip(stages, own, strict=True)]
    notes = {stage: round(statistics.median(s[stage] for s in stages), 4) for stage in stages[0]}
    notes["cost_of_a_run_cpu_s"] = _cost_of_a_run(runs[name], own, rows)
    figure = figure_of(
        f"b4 {name}, share of the bound", (runs[name], "many"), values, _MIN_SHARE,
        rows=rows * copies, unit="of bound", notes=notes,
    )  # fmt: skip
    return replace(figure, cpu_ms_per_record=round(statistics.median(own), 4))


def _against(
    sides: tuple[str, str], runs: dict[str, list[Run]], rows: int, copies: int, goal: float | None,
    notes: dict[str, Any],
) -> Figure:  # fmt: skip
    """The peer's milliseconds a record over ours."""
    own, theirs = (_slopes(runs[side], rows, copies) for side in sides)
    ratios = [b / a for a, b in zip(own, theirs, strict=True)]
    figure = figure_of(
        f"b4 {sides[0]} vs {sides[1]}", (runs[sides[0]], "many"), ratios, goal,
        rows=rows * copies, unit="x", peer=(runs[sides[1]], "many"), notes=notes,
    )  # fmt: skip
    return replace(
        figure,
        cpu_ms_per_record=round(statistics.median(own), 4),
        peer_cpu_ms_per_record=round(statistics.median(theirs), 4),
    )
