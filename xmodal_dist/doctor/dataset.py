"""Checks of a dataset with its settings before a run: memory, row groups, decoding against computing, time and cost.

A few steps are read, decoded and trained in this process, without Ray; figures hold for machines like this one.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from xmodal_dist import runtime
from xmodal_dist.batch import Batch
from xmodal_dist.dataset.manifest import load_manifest
from xmodal_dist.doctor.finding import Finding, gib, graded
from xmodal_dist.modalities.fields import transform
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.train.job import TrainJob
from xmodal_dist.train.optim import adamw
from xmodal_dist.train.settings import TrainSettings
from xmodal_dist.train.step import optimizer_step
from xmodal_dist.train.stopwatch import Stopwatch

__all__ = ["Measured", "examine_dataset"]

_FIT_ROWS = 2_000
_MEASURE_ROWS = 512
_MEASURE_S = 10.0
_ADAMW_COPIES = 4
_TIGHT, _LARGE_SHARE = 0.8, 0.25


class Measured(NamedTuple):
    """A few steps of training in this process.

    Attributes:
        decode_s: CPU-seconds of reading and decoding a record, in one thread.
        compute_s: seconds of forward, backward and update a record; on a CPU those of its thread.
        predict_s: seconds of the forward pass alone a record.
        row_bytes: of one decoded record.
        saved_bytes: kept for the backward pass, a record.
        weight_bytes: of the weights.
        process_bytes: of the process with its libraries, before it read anything.
    """

    decode_s: float
    compute_s: float
    predict_s: float
    row_bytes: int
    saved_bytes: float
    weight_bytes: int
    process_bytes: int


def examine_dataset(
    dataset: str,
    *,
    fields: Mapping[str, Mapping[str, Any] | None],
    model: ModelSettings,
    train: TrainSettings,
    pipeline: PipelineSettings,
    score: ScoreSettings,
    price_per_hour: float | None = None,
) -> Iterator[Finding]:
    """Look at a dataset as a run with these settings would.

    Args:
        dataset: path or URI of a packed dataset.
        fields: settings by field name.
        model: settings of the model.
        train: settings of the training.
        pipeline: settings of the reading.
        score: settings of scoring.
        price_per_hour: of this machine, in any currency.

    Raises:
        UsageError: there is no dataset, or settings do not fit it or each other.
    """
    manifest = load_manifest(dataset)
    train = train.for_task(manifest.task)
    gpus = torch.cuda.device_count()
    workers = train.num_workers or gpus or 2
    train.check(workers, pipeline.window_rows)
    manifest.split_shards("train")
    specs = fit_fields(dataset, manifest, fields, min(train.fit_rows, _FIT_ROWS))
    here = pipeline.model_copy(update={"placement": "local", "cache_dir": None})
    job = TrainJob("", dataset, manifest, specs, model, train, here, 1.0, 0.0, gpus > 0, time.time())
    yield from _row_groups(job, workers)
    measured = _measure(job)
    yield from _memory(job, workers, measured, score)
    yield _ratio(measured, workers, gpus)
    yield _duration(job, workers, gpus, measured, price_per_hour)


def _row_groups(job: TrainJob, workers: int) -> Iterator[Finding]:
    """A worker holds, of each of its lanes, the row groups of one window and of the next."""
    groups = [(g.bytes, g.rows, s.path) for _, s in job.manifest.split_shards("train") for g in s.row_groups]
    most_bytes, rows, path = max(groups)
    held, free = _held_bytes(job, workers), runtime.free_memory_bytes()
    seen = f"largest {gib(most_bytes)} ({rows} rows, in {path}); a worker holds up to {gib(held)}"
    advice = "pack again with a lower pack.row_group_bytes, or train with fewer train.lanes"
    share = held * workers / max(free, 1)
    yield graded("row groups: bytes", seen, advice, warn=share > _LARGE_SHARE, fail=share > 1)
    most_rows = max(rows for _, rows, _ in groups)
    lane_rows = job.manifest.splits["train"].rows / job.train.lanes
    seen = f"largest {most_rows} rows; a lane reads {lane_rows:.0f} an epoch in windows of {job.schedule.window_rows}"
    advice = (
        "lanes share row groups and read each anew, and records of a group stay together: pack again with a lower "
        "pack.rows_per_row_group, or train with fewer train.lanes"
    )
    yield graded("row groups: rows", seen, advice, warn=most_rows > lane_rows)


def _held_bytes(job: TrainJob, workers: int) -> int:
    """Encoded bytes in the hands of a worker: row groups that two windows of its lanes touch, borders included."""
    groups = [g for _, s in job.manifest.split_shards("train") for g in s.row_groups]
    largest, rows = max(g.bytes for g in groups), max(1, min(g.rows for g in groups))
    touched = 2 * (math.ceil(job.schedule.window_rows / rows) + 1)
    lanes = math.ceil(job.train.lanes / workers)
    return min(lanes * touched * largest, sum(g.bytes for g in groups))


def _measure(job: TrainJob) -> Measured:
    device = torch.device("cuda" if job.use_gpu else "cpu")
    process_bytes = _process_bytes()
    torch.manual_seed(job.train.seed)
    network = job.new_model().to(device)
    chunk = next(job.schedule.chunks("train", 0, 0, 1, augment=True))
    steps = max(1, min(chunk.steps, _MEASURE_ROWS // job.train.batch_size))
    reader = job.reader()
    piece = reader.read(chunk._replace(stop_step=chunk.start_step + steps))
    rows = len(piece.records) // piece.steps
    batches = [
        piece.records.slice(at, at + rows).to_batch().to(device) for at in range(0, len(piece.records), rows)
    ]
    compute_s = _step_s(network, batches, job) / rows
    batch = batches[0]
    few = batch.slice(0, min(len(batch), max(1, job.train.batch_size // job.train.lanes)))
    saved_bytes, predict_s = _forward(network, few, job)
    used = int((piece.records.ids >= 0).sum())
    weight_bytes = sum(p.nbytes for p in network.parameters())
    return Measured(
        decode_s=piece.cpu_s / max(used, 1),
        compute_s=compute_s,
        predict_s=predict_s / len(few),
        row_bytes=reader.row_bytes,
        saved_bytes=saved_bytes / len(few),
        weight_bytes=weight_bytes,
        process_bytes=process_bytes,
    )


def _step_s(network: torch.nn.Module, batches: Sequence[Batch], job: TrainJob) -> float:
    """Median seconds of a training step, of its thread on a CPU; the first one warms up and does not count."""
    optimizer = adamw(network, job.train.learning_rate, job.train.weight_decay)
    idle = torch.accelerator.synchronize if job.use_gpu else None
    clock, watch = time.perf_counter if job.use_gpu else time.thread_time, Stopwatch(idle)
    spent_s, began_s = list[float](), time.perf_counter()
    for batch in [batches[0], *batches]:
        start_s = clock()
        optimizer_step(network, optimizer, batch, job, job.train.learning_rate, 1, watch)
        if idle is not None:
            idle()
        spent_s.append(clock() - start_s)
        if len(spent_s) > 1 and time.perf_counter() - began_s > _MEASURE_S:
            break
    return statistics.median(spent_s[1:])


def _forward(network: torch.nn.Module, batch: Batch, job: TrainJob) -> tuple[int, float]:
    """Bytes that one forward pass keeps for the backward one, each storage once, and its seconds without a gradient."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    held = []  # while they live, no two storages have one address

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    shown = transform(job.specs, batch, augment=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(shown.inputs, shown.present, shown.keys)
    began_s = time.perf_counter()
    with torch.no_grad():
        network(shown.inputs, shown.present, shown.keys)
    if job.use_gpu:
        torch.accelerator.synchronize()
    return sum(kept.values()), time.perf_counter() - began_s


def _memory(job: TrainJob, workers: int, measured: Measured, score: ScoreSettings) -> Iterator[Finding]:
    train, m, free_bytes = job.train, measured, runtime.free_memory_bytes()
    share_rows = math.ceil(train.batch_size / workers)
    by_lane = train.adds_lane_by_lane("cuda" if job.use_gpu else "cpu")
    at_once = min(train.micro_batch_rows or share_rows, share_rows)
    if by_lane:
        at_once = min(at_once, train.batch_size // train.lanes)
    learning = _ADAMW_COPIES * m.weight_bytes + at_once * m.saved_bytes
    reading = (
        m.process_bytes
        + job.pipeline.prefetch_bytes
        + 2 * share_rows * m.row_bytes
        + _held_bytes(job, workers)
    )
    advice = "lower train.micro_batch_rows, train.batch_size or train.num_workers"
    if job.use_gpu:
        room = torch.cuda.get_device_properties(0).total_memory
        yield _peak("memory of training: GPU", learning, room, advice, f"{gib(room)} on the GPU")
        host: float = workers * reading
    else:
        host = workers * (reading + learning)
    advice = "lower pipeline.prefetch_bytes, train.num_workers or train.micro_batch_rows"
    yield _peak("memory of training", host, free_bytes, advice, f"{workers} worker(s) here")
    batch_rows = score.batch_rows or 256
    threads = score.threads or (runtime.usable_cores() if job.use_gpu else 1)
    scoring = (
        m.process_bytes + m.weight_bytes + 2 * score.unit_bytes
        + (threads + 2) * batch_rows * m.row_bytes + batch_rows * m.saved_bytes
    )  # fmt: skip
    scorers = torch.cuda.device_count() or runtime.usable_cores()
    advice = "lower score.batch_rows or score.unit_bytes, or score with fewer workers"
    yield _peak("memory of scoring", scorers * scoring, free_bytes, advice, f"{scorers} worker(s) here")


def _peak(check: str, needed: float, room: float, advice: str, where: str) -> Finding:
    seen = f"about {gib(needed)} at the peak, {where}; {gib(room)} are there"
    return graded(check, seen, advice, warn=needed > _TIGHT * room, fail=needed > room)


def _ratio(measured: Measured, workers: int, gpus: int) -> Finding:
    """Reading against computing; on CPUs they share the cores, beside a GPU readers have all of them."""
    decode, compute = measured.decode_s, measured.compute_s
    ratio = decode / max(compute, 1e-12)
    seen = f"{ratio:.2f} ({decode * 1e3:.2f} ms to read a record, {compute * 1e3:.2f} ms to train on it)"
    cores = runtime.usable_cores()
    starved = decode / cores > compute / min(workers, gpus) if gpus else decode > compute
    advice = (
        "reading sets the pace: set pipeline.cache_dir, fields.NAME.decode=fast of images, pack media smaller "
        "(pack.max_image_side_px), or add nodes with CPUs for readers"
    )
    return graded("decode to compute", seen, advice, warn=starved)


def _duration(
    job: TrainJob, workers: int, gpus: int, measured: Measured, price_per_hour: float | None
) -> Finding:
    """Training on this machine alone, by the bound of goodput: CPUs add costs up, a GPU overlaps them."""
    m, cores = measured, runtime.usable_cores()
    sets = job.manifest.splits
    shown = sets["train"].rows
    checked = sets["val"].rows if job.validates else 0
    if gpus:
        train_s = max(m.decode_s / cores, m.compute_s / min(workers, gpus))
        check_s = max(m.decode_s / cores, m.predict_s / min(workers, gpus))
    else:
        train_s = max((m.decode_s + m.compute_s) / cores, m.compute_s / workers)
        check_s = max((m.decode_s + m.predict_s) / cores, m.predict_s / workers)
    hours = job.train.epochs * (shown * train_s + checked * check_s) / 3600
    epochs = f"{job.train.epochs} epochs of {shown} records"
    seen = f"{_time(hours)} for {epochs} on this machine, at {1 / train_s:.0f} records/s"
    if price_per_hour is not None:
        seen += f"; costs {hours * price_per_hour:.2f}"
    return Finding("time of training", "ok", seen)


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _process_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
