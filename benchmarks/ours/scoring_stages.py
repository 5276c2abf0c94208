"""The stages of scoring, each alone in a thread: what no arrangement of them can do without.

Request keys: ``bundle``; ``few``, files to read; ``folder``; ``settings``. Result: ``cpu_ms``, of a record by stage.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.ours.reading import NUM_CPUS
from benchmarks.protocol import finish, measured, request
from xmodal_dist.score.decoder import DecodedBatch, Decoder
from xmodal_dist.score.job import prepare
from xmodal_dist.score.predictor import Predictor
from xmodal_dist.score.scorer import Scorer
from xmodal_dist.score.settings import ScoreSettings

__all__ = ["main"]

_READ_ROWS = 64
_REPEATS = 3


def main(asked: dict[str, Any]) -> None:
    """The stages in one process a core, so that cores share caches and memory as they do in a run."""
    context = multiprocessing.get_context("spawn")
    with measured("stages"), context.Pool(NUM_CPUS) as pool:
        found = pool.map(_stages, [asked] * NUM_CPUS, chunksize=1)
    finish({"cpu_ms": {stage: statistics.mean(one[stage] for one in found) for stage in found[0]}})


def _stages(asked: dict[str, Any]) -> dict[str, float]:
    """CPU-milliseconds of a record by stage."""
    torch.set_num_threads(1)
    settings = ScoreSettings.model_validate(asked["settings"])
    run = prepare(asked["bundle"], asked["few"], os.path.join(asked["folder"], "out"), settings)
    predictor = Predictor(run.model, torch.device("cpu"), settings)
    scorer, decoder, unit = Scorer(run.job, predictor), Decoder.of(run.job, run.model), run.plan.unit(0)

    def decode() -> list[DecodedBatch]:
        return [decoder.decode(u, rows) for u in run.plan for rows in decoder.read(u, _READ_ROWS)]

    decode_ms, batches = _time(decode, run.plan.num_rows)
    model_ms, _ = _time(lambda: [predictor.predict(b.records.to_batch()) for b in batches], run.plan.num_rows)
    table = pa.concat_tables([scorer.score(unit, batch).table for batch in batches])
    write_ms, _ = _time(lambda: _write(table), run.plan.num_rows)
    return {"read and decode": decode_ms, "model": model_ms, "write": write_ms}


def _write(table: pa.Table) -> None:
    pq.write_table(table, io.BytesIO(), compression="zstd", write_page_checksum=True)


def _time(stage: Callable[[], Any], rows: int) -> tuple[float, Any]:
    """CPU-milliseconds of a record in this thread, and what came out."""
    result, spent_s = None, []
    for _ in range(_REPEATS):
        began_s = time.thread_time()
        result = stage()
        spent_s.append(time.thread_time() - began_s)
    return min(spent_s) * 1e3 / rows, result


if __name__ == "__main__":
    main(request())
