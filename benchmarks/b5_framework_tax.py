"""B5, framework tax: 200,000 tiny rows and an identity model; what it costs beyond a bare pyarrow loop.

Two figures a placement. Per record: our processor time less that of ``pyarrow.parquet`` ``iter_batches`` making the
same numpy arrays from the same files. Per unit: how much processor time grows when the same rows are read in 8 times as
many units (windows, each fetched and planned as one), a unit.
"""

from __future__ import annotations

from benchmarks.data import packed_table
from benchmarks.harness import Figure, Options, Run, Side, figure_of, require, run_rounds
from benchmarks.ours.reading import make_reader
from xmodal_dist import storage
from xmodal_dist.dataset.schema import LABEL

__all__ = ["run"]

_ROWS = 200_000
_ROW_GROUPS = 16
_BATCH_SIZE = 1024
_PASSES = 5
_FEW, _USUAL, _MANY = 25, 12, 3
"""Steps of a unit: 8 units, about one a row group, and 66 units."""
_MAX_TAX_US = 3.0
_MAX_UNIT_MS = 10.0


def run(options: Options) -> list[Figure]:
    """Both placements."""
    rows = options.rows or _ROWS
    dataset = packed_table(options.cache, rows, _ROW_GROUPS)
    reader = make_reader(dataset, {}, _BATCH_SIZE, _BATCH_SIZE)
    manifest = reader.schedule.manifest
    common = {"batch_size": _BATCH_SIZE, "passes": _PASSES}
    loop = {
        "shards": [storage.join(dataset, s.path) for s in manifest.shards],
        "columns": reader.specs[0].fitted.values["columns"],
        "classes": list(manifest.classes),
        "label": LABEL,
    }
    ours = {"dataset": dataset, "steps_per_unit": [_FEW, _USUAL, _MANY]}
    sides = [Side("pyarrow loop", "benchmarks.peers.arrow_loop", {**common, **loop})]
    sides += [
        Side(placement, "benchmarks.ours.tiny_rows", {**common, **ours, "placement": placement})
        for placement in ("local", "ray")
    ]
    digests: set[str] = set()

    def check(side: Side, done: Run) -> None:
        counts = done.result["rows"]
        counts = list(counts.values()) if isinstance(counts, dict) else [counts]
        require(counts == [rows * _PASSES] * len(counts), f"{side.name}: {counts} rows of {rows * _PASSES}")
        digests.add(str(done.result["digest"]))
        require(len(digests) == 1, f"{side.name}: other arrays than the sides before it")

    runs = run_rounds(sides, options, check)
    figures = []
    for placement in ("local", "ray"):
        own, bare = runs[placement], runs["pyarrow loop"]
        figures += [_tax(placement, own, bare, rows), _per_unit(placement, own, rows)]
    return figures


def _tax(placement: str, own: list[Run], bare: list[Run], rows: int) -> Figure:
    count = rows * _PASSES
    taxes = [
        (a.regions[str(_USUAL)].cpu_s - b.regions["loop"].cpu_s) * 1e6 / count
        for a, b in zip(own, bare, strict=True)
    ]
    return figure_of(
        f"b5 {placement}, tax over a bare pyarrow loop", (own, str(_USUAL)), taxes, _MAX_TAX_US,
        rows=count, unit="us/record", better="lower", peer=(bare, "loop"),
    )  # fmt: skip


def _per_unit(placement: str, own: list[Run], rows: int) -> Figure:
    steps = -(-rows // _BATCH_SIZE)
    few, many = -(-steps // _FEW), -(-steps // _MANY)
    slopes = [
        (run.regions[str(_MANY)].cpu_s - run.regions[str(_FEW)].cpu_s) * 1e3 / ((many - few) * _PASSES)
        for run in own
    ]
    # A Ray Data task costs more than this goal; what a unit of seconds of work makes of it is the other figure.
    goal = _MAX_UNIT_MS if placement == "local" else None
    return figure_of(
        f"b5 {placement}, cost of a unit ({few} to {many} units)", (own, str(_MANY)), slopes, goal,
        rows=rows * _PASSES, unit="ms/unit", better="lower",
    )  # fmt: skip
