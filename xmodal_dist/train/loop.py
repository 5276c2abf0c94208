"""The training loop: what every worker of a run does. Read this first.

One stream of chunks runs through all epochs (train, then val, then the next epoch), so readers never pause. Global step
t is the same records on any number of workers; losses are divided by the global weight; nothing in the state depends
on the world size. So a run can be killed at any step and go on with other workers, exactly.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from xmodal_dist import runtime, storage
from xmodal_dist.batch import Batch
from xmodal_dist.bundle import Bundle, save_bundle
from xmodal_dist.calibrate import Calibration
from xmodal_dist.dataset.quarantine import Rejected, check_budget, to_parquet
from xmodal_dist.errors import DivergedError, UsageError, XmodalError
from xmodal_dist.pipeline.chunks import Chunk
from xmodal_dist.pipeline.stream import Readers, Step, stream_steps
from xmodal_dist.train import finetune, validation
from xmodal_dist.train.average import WeightAverage
from xmodal_dist.train.calibration import Observed, calibration_chunks, fit_observed, joined, observe
from xmodal_dist.train.checkpoint import (
    Progress,
    checkpoint_name,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
)
from xmodal_dist.train.frozen import with_frozen
from xmodal_dist.train.goodput import epoch_figures, summarise
from xmodal_dist.train.job import TrainJob
from xmodal_dist.train.log import MetricsLog, read_metrics
from xmodal_dist.train.optim import adamw, learning_rate_at
from xmodal_dist.train.place import Place
from xmodal_dist.train.step import StepSums, optimizer_step
from xmodal_dist.train.stopwatch import RankTiming, Stopwatch

__all__ = ["Worker", "train_worker"]

_T = TypeVar("_T")


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Entry point of every Ray Train worker, given ``job`` and perhaps ``gate``: see :meth:`Worker.run`."""
    try:
        return Worker(config["job"], Place.in_group()).run(config.get("gate"))
    except UsageError as error:
        # A user's mistake that every rank has met; no restart would help.
        return {"error": error}


class Worker:
    """One rank of a run, which goes on from the newest checkpoint."""

    def __init__(self, job: TrainJob, place: Place) -> None:
        self.job, self.place = job, place
        self.rank, self.num_workers, self.device = place.rank, place.num_workers, place.device
        self.watch = Stopwatch(torch.accelerator.synchronize if self.device.type != "cpu" else None)
        before_s = time.time() - job.started_s
        torch.manual_seed(job.train.seed)
        self.model = job.new_model().to(self.device)
        newest, again = self._newest_checkpoint()
        if newest is None:
            finetune.load_pretrained(self.model, job.specs, self._gather)
        scales = finetune.rate_scales(self.model, job.specs)
        self.optimizer = adamw(self.model, job.train.learning_rate, job.train.weight_decay, scales)
        decay = job.train.ema_decay
        self.average = WeightAverage(self.model, decay) if decay else None
        self.progress = self._restore(newest)
        self.schedule = job.schedule
        self.steps = self.schedule.steps("train")
        # Readers begin while the rest is made.
        self.specs = with_frozen(job, self.model)
        steps = stream_steps(job.reader(self.specs), self._chunks(), job.pipeline, self._readers())
        self.batches = self._batches(steps)
        finetune.freeze(self.model, job.specs, self.progress.epoch)
        self.ddp = self._parallel()
        self.sums = StepSums(self.device)
        self.rejected: list[Rejected] = []
        self.reasons = Counter[str]()
        self.reader_cpu_s = 0.0  # of other processes; threads are counted with this one
        self.records = 0
        self.observed: Observed | None = None
        self.first_step = self.progress.global_step
        self.log = MetricsLog(job.run, self.rank, self.progress.global_step)
        self._log_start()
        self.watch.ready(before_s, again)

    def run(self, gate: Callable[[int], bool] | None = None) -> dict[str, Any]:
        """Train from wherever the run is to its end; returns a summary on rank 0.

        ``gate`` is asked on rank 0 after each epoch, with the epochs done; at a no the run ends, without a bundle.
        """
        while not self.progress.done:
            self._train_epoch()
            metrics = self._validate()
            try:
                self._end_epoch(metrics)
            except XmodalError as error:
                # Decided on figures of all ranks, so every rank is here, and no restart would help.
                return {"error": error}
            if gate and not self._gather(self.rank != 0 or gate(self.progress.epoch))[0]:
                self.close()
                return {}
        return self.finish()

    def epoch(self) -> None:
        """Train and validate for one epoch, up to its checkpoint."""
        self._train_epoch()
        self._end_epoch(self._validate())

    def finish(self) -> dict[str, Any]:
        """Make the bundle of the best epoch so far, and return a summary on rank 0.

        There ``observed`` then is what the bundle says of the validation records; None without any.
        """
        bundle = self._best_bundle()
        bundle = replace(bundle, calibration=self._calibrate(bundle))
        cpu_s, ranks = self._cpu_s(), self._gather(self.watch.timing())
        summary = self._finish(bundle, cpu_s, ranks) if self.rank == 0 else {}
        self.close()
        if self.num_workers > 1:
            dist.barrier()
        return summary

    def close(self) -> None:
        """Stop reading, and write what is still to be written; no weights are lost."""
        self.batches.close()
        self.log.close()

    def _train_epoch(self) -> None:
        train, progress = self.job.train, self.progress
        total_steps = self.steps * train.epochs
        if finetune.freeze(self.model, self.job.specs, progress.epoch):
            self.ddp = self._parallel()
        self.ddp.train()
        self.watch.begin("train")
        while progress.step < self.steps:
            batch = self._next_batch()
            rate = learning_rate_at(
                progress.global_step, total_steps, train.learning_rate, train.warmup_fraction
            )
            sums = optimizer_step(
                self.ddp, self.optimizer, batch, self.job, rate, self.num_workers, self.watch
            )
            self.sums.add(sums)
            self.watch.step(int((batch.ids >= 0).sum()))
            progress.step += 1
            progress.global_step += 1
            if self.average is not None:
                self.average.update(progress.global_step)
            if progress.global_step % train.log_every_steps == 0:
                self.log.step(progress, sums.mean_loss(), rate, self._records_per_s())
            every = train.checkpoint_every_steps
            if every and progress.global_step % every == 0:
                self._gather_sums()
                self._checkpoint()

    def _validate(self) -> dict[str, Any]:
        """Exact metrics over the val split, equal on all ranks; {} where the dataset has none."""
        if not self.job.validates:
            return {}
        by_lane = self.job.train.adds_lane_by_lane(self.device.type)
        rows_at_once = self.schedule.rows_per_lane if by_lane else None
        totals = validation.totals(self.job.task, len(self.job.manifest.classes), self.device, rows_at_once)
        self.ddp.eval()
        self.watch.begin("val")
        with contextlib.nullcontext() if self.average is None else self.average.applied():
            for _ in range(self.schedule.steps("val")):
                batch = self._next_batch()
                with self.watch.stage("evaluation"):
                    totals.add(self.model, self.job.specs, batch)
        rows = self.job.manifest.splits["val"].rows
        with self.watch.stage("synchronise"):
            return totals.reduce(self.num_workers, rows)

    def _end_epoch(self, metrics: dict[str, Any]) -> None:
        """Account for every record, log, keep the best, decide whether to stop, and checkpoint."""
        self._gather_sums()
        self._account()
        progress, train = self.progress, self.job.train
        epoch, train_loss = progress.epoch, progress.loss_sum / max(progress.weight_sum, 1e-12)
        if not np.isfinite(train_loss):
            raise DivergedError(
                f"the training loss of epoch {epoch} is {train_loss}; lower train.learning_rate or train.clip_norm"
            )
        records = progress.rows_used
        progress.epoch, progress.step = epoch + 1, 0
        progress.loss_sum, progress.weight_sum, progress.rows_used, progress.rows_rejected = 0.0, 0.0, 0, 0
        kept = progress.judge(*validation.monitored(metrics, train_loss, train.monitor))
        if kept:
            progress.best_epoch, progress.best_metrics = epoch, metrics
            progress.best_checkpoint = checkpoint_name(progress)
        impatient = 0 < train.patience_epochs <= progress.stale_epochs
        progress.done = progress.epoch >= train.epochs or impatient
        timing = epoch_figures(self._gather(self.watch.epoch()))
        self.log.epoch(epoch, progress.global_step, train_loss, metrics, kept, records, timing)
        self._check_ranks_agree()
        self._checkpoint()

    def _next_batch(self) -> Batch:
        with self.watch.stage("wait_for_data"):
            batch = next(self.batches)
        with self.watch.stage("host_to_device"):
            return batch.to(self.device)

    def _batches(self, steps: Iterator[Step]) -> Generator[Batch, None, None]:
        """This rank's share of every global step from where the run is, train and val in turn, to the last epoch's."""
        for step in steps:
            self.rejected.extend(step.rejected)
            self.watch.handed(step)
            self.reader_cpu_s += step.cpu_s if step.placement == "ray" else 0.0
            yield step.records.to_batch()

    def _readers(self) -> Readers:
        """What may read for this worker."""
        elsewhere = self.specs == self.job.specs and runtime.nodes_alive() > 1  # they have no encoders
        return Readers.share(self.job.pipeline, self.place.workers_on_node, self.job.reader_cpus, elsewhere)

    def _chunks(self) -> Iterator[Chunk]:
        share = {"rank": self.rank, "num_workers": self.num_workers}
        first = self.progress.epoch
        for epoch in range(first, self.job.train.epochs):
            start = self.progress.step if epoch == first else 0
            yield from self.schedule.chunks("train", epoch, augment=True, start_step=start, **share)
            if self.job.validates:
                yield from self.schedule.chunks("val", epoch, augment=False, **share)

    def _gather_sums(self) -> None:
        """Add what all ranks did since the last call to the progress."""
        with self.watch.stage("synchronise"):
            loss, weight, used, rejected = self.sums.take(self.num_workers)
        self.progress.loss_sum += loss
        self.progress.weight_sum += weight
        self.progress.rows_used += int(used)
        self.progress.rows_rejected += int(rejected)
        self.records = self.sums.records
        self._write_rejected()

    def _write_rejected(self) -> None:
        """Put the records that this rank could not decode since the last call into the run's quarantine."""
        if self.rejected:
            name = f"step-{self.progress.global_step:09d}-rank-{self.rank:05d}.parquet"
            storage.write_bytes(storage.join(self.job.quarantine, name), to_parquet(self.rejected))
        self.reasons.update(r.reason for r in self.rejected)
        self.rejected.clear()

    def _account(self) -> None:
        """Every record of the split was used once or rejected, and not too many were; otherwise the run fails."""
        progress, rows = self.progress, self.job.manifest.splits["train"].rows
        if progress.rows_used + progress.rows_rejected != rows:
            raise XmodalError(
                f"epoch {progress.epoch}: {progress.rows_used} records used + {progress.rows_rejected} rejected "
                f"is not the split's {rows}: please report this as a bug"
            )
        reasons = self._gather(self.reasons)
        if self.job.validates:
            rows += self.job.manifest.splits["val"].rows
        setting, limit = "train.max_bad_fraction", self.job.train.max_bad_fraction
        check_budget(sum(reasons, Counter[str]()), rows, limit, setting, self.job.quarantine)
        self.reasons.clear()

    def _parallel(self) -> nn.Module:
        """The model, under DDP where that adds the gradients: of what learns now, for it takes note only once."""
        if self.num_workers == 1 or self.job.train.adds_lane_by_lane(self.device.type):
            return self.model
        from ray.train.torch import prepare_model

        return prepare_model(self.model, parallel_strategy_kwargs={"gradient_as_bucket_view": True})

    def _newest_checkpoint(self) -> tuple[str | None, bool]:
        """The newest whole checkpoint; also whether this command had an attempt before this one.

        Rank 0 chooses, so that all ranks take the same.
        """
        job = self.job
        found: list[Any] = [None, False]
        if self.rank == 0:
            again = any(line.get("launched_s") == job.started_s for line in read_metrics(job.run))
            found = [latest_checkpoint(job.checkpoints, job.digest), again]
        if self.num_workers > 1:
            dist.broadcast_object_list(found, src=0)
        return found[0], found[1]

    def _restore(self, checkpoint: str | None) -> Progress:
        """Continue from a checkpoint, or from the start."""
        if checkpoint is None:
            return Progress()
        restored = (self.model, self.optimizer, self.device, self.average)
        return load_checkpoint(self.job.checkpoints, checkpoint, *restored)

    def _checkpoint(self) -> None:
        with self.watch.stage("checkpoint"):
            if self.rank != 0:
                return
            root = self.job.checkpoints
            saved = (self.model, self.optimizer, self.average)
            save_checkpoint(root, self.job.digest, self.progress, *saved)
            prune_checkpoints(root, self.job.train.keep_checkpoints, self.progress.best_checkpoint)

    def _check_ranks_agree(self) -> None:
        """Fail if the ranks' weights are not the same, bit for bit."""
        if self.num_workers == 1:
            return
        total = torch.stack([p.detach().double().abs().sum() for p in self.model.parameters()]).sum()
        low, high = total.clone(), total.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        if low.item() != high.item():
            raise XmodalError("the workers' weights differ: gradients were not synchronised; this is a bug")

    def _cpu_s(self) -> float:
        """CPU-seconds of all workers and their readers in this attempt."""
        total = torch.tensor(time.process_time() + self.reader_cpu_s, device=self.device)
        if self.num_workers > 1:
            dist.all_reduce(total)
        return float(total)

    def _gather(self, mine: _T) -> list[_T]:
        """The same value of every rank, on every rank."""
        values = [mine] * self.num_workers
        if self.num_workers > 1:
            dist.all_gather_object(values, mine)
        return values

    def _best_bundle(self) -> Bundle:
        """The best epoch's weights as a bundle, on every rank."""
        job, progress = self.job, self.progress
        if self.num_workers > 1:
            dist.barrier()  # rank 0 may still be writing the checkpoint
        averaged = self.average is not None
        load_weights(job.checkpoints, progress.best_checkpoint, self.model, self.device, averaged)
        metrics = {"val": progress.best_metrics, "epoch": progress.best_epoch, "epochs": progress.epoch}
        origin = {"identity": job.identity(), "torch": torch.__version__.split("+")[0]}
        return Bundle(
            job.specs, job.manifest.classes, job.model, self.model, metrics, origin,
            profile=job.profile, task=job.task,
        )  # fmt: skip

    def _calibrate(self, bundle: Bundle) -> Calibration | None:
        """Temperatures from the validation records, on rank 0; every rank predicts its share of them."""
        job = self.job
        if not job.validates:
            return None
        chunks = calibration_chunks(bundle, self.schedule, "val", self.rank, self.num_workers)
        # In threads: it is not worth starting tasks for so few records.
        reading = job.pipeline.model_copy(update={"placement": "local"})
        self.watch.begin("val")
        self.batches = self._batches(stream_steps(job.reader(self.specs), chunks, reading, self._readers()))
        batches = (self._next_batch() for _ in range(sum(chunk.steps for chunk in chunks)))
        by_lane = job.train.adds_lane_by_lane(self.device.type)
        rows_at_once = self.schedule.rows_per_lane if by_lane else None
        found = observe(bundle, batches, rows_at_once, self.watch.stage)
        self.rejected.clear()  # the epochs' validation has counted them
        with self.watch.stage("synchronise"):
            every = self._gather(found)
        if self.rank:
            return None
        self.observed = joined(every)
        with self.watch.stage("evaluation"):
            return fit_observed(bundle, self.observed, job.manifest.fingerprint, "val")

    def _finish(self, bundle: Bundle, cpu_s: float, ranks: list[RankTiming]) -> dict[str, Any]:
        """Write the bundle and goodput.json."""
        job, progress = self.job, self.progress
        fingerprint = save_bundle(job.bundle, bundle)
        tasks_cpus = (job.worker_cpus + job.reader_cpus) * len(ranks)
        tasks_read = any(rank.reading["rows_ray"] for rank in ranks)
        cores = runtime.cores_of({r.machine: r.cores for r in ranks}, tasks_cpus if tasks_read else None)
        goodput = summarise(ranks, time.time() - job.started_s, self.records, cpu_s, cores)
        if job.order is not None:
            goodput["order"] = {name: round(value, 4) for name, value in job.order._asdict().items()}
        self.log.document("goodput.json", goodput)
        counts = {"epochs": progress.epoch, "best_epoch": progress.best_epoch, "records": self.records}
        return {"fingerprint": fingerprint, **counts, **progress.best_metrics}

    def _records_per_s(self) -> float:
        """Records of all workers a second since this attempt began to train."""
        steps = self.progress.global_step - self.first_step
        return steps * self.job.train.batch_size / max(self.watch.wall_s(), 1e-9)

    def _log_start(self) -> None:
        """Say who trains; the process ids let an operator find a worker."""
        workers, job = self._gather(self.place.describe()), self.job
        self.log.start(self.progress, workers, self.steps, job.train.epochs, job.started_s)
