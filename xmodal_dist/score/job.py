"""A scoring run: plan the input, claim the output, let a pool of actors score and commit units, check, finish.

The workers commit; Ray Data only carries units to them and receipts back. So no retry, kill or second driver can lose a
record or score one twice.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from xmodal_dist import runtime, storage
from xmodal_dist.bundle import Bundle, load_bundle
from xmodal_dist.dataset.quarantine import check_budget
from xmodal_dist.dataset.schema import ID, LABEL
from xmodal_dist.errors import RunAgainError, XmodalError
from xmodal_dist.progress import ConsoleProgress
from xmodal_dist.score import ledger
from xmodal_dist.score.formats import Identity, Part, ScoreManifest
from xmodal_dist.score.outputs import output_schema
from xmodal_dist.score.scorer import Job
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.source import Need, Plan, Unit, make_plan, needs_of
from xmodal_dist.score.worker import ScoreWorker, part_from_receipt
from xmodal_dist.version import __version__

__all__ = ["Run", "ScoreResult", "prepare", "score"]

_BUDGET_SETTING = "score.max_bad_fraction"


class ScoreResult(NamedTuple):
    """A finished run: where it is, its manifest, and how many rows this command scored itself."""

    output: str
    manifest: ScoreManifest
    rows_scored_now: int


class Run(NamedTuple):
    """A run before it starts: the model, what to read, what it is, and what its workers share."""

    model: Bundle
    plan: Plan
    identity: Identity
    job: Job


def score(
    bundle: str, inputs: Sequence[str], output: str, settings: ScoreSettings, num_workers: int | None = None
) -> ScoreResult:
    """Score an input inside a Ray session that is already there; the same call again goes on where it stopped.

    Args:
        bundle: path or URI of the bundle.
        inputs: Parquet files, globs, folders of them, or packed datasets.
        output: path or URI of the output; on several nodes, one that all of them reach.
        settings: how to score.
        num_workers: actors; None takes one per GPU, else one per CPU.

    Raises:
        UsageError: an input or column is absent, or the output holds something else.
        DataError: an input file is damaged or changed.
        SpecDiffersError: the output belongs to a run with another bundle, input or settings.
        BudgetExceededError: too many records were rejected; what was scored stays, no manifest is written.
        RunAgainError: Ray lost workers beyond what it repairs by itself; the same call goes on.
    """
    run = prepare(bundle, inputs, output, settings)
    plan, output = run.plan, run.job.output
    ledger.open_run(output, run.identity, plan)
    finished = ledger.load_manifest(output)
    if finished is not None:
        return ScoreResult(output, finished, 0)
    before = ledger.committed_units(output) & {u.number for u in plan.units}
    parts = {part.footer.unit: part for part in ledger.read_parts(output, sorted(before))}
    waiting = [unit for unit in plan.units if unit.number not in parts]
    reasons = Counter[str]()
    for part in parts.values():
        reasons.update(part.footer.reasons)
    quarantine = storage.join(output, ledger.QUARANTINE)
    done = sum(part.footer.rows_in for part in parts.values())
    with ConsoleProgress("scoring", before=done) as progress:
        for part in _score_units(run.job, waiting, num_workers):
            parts[part.footer.unit] = part
            reasons.update(part.footer.reasons)
            done += part.footer.rows_in
            progress(done, reasons.total(), plan.rows)
            # Against the rows of the whole plan, so that the run stops as soon as its end is certain.
            check_budget(reasons, plan.rows, settings.max_bad_fraction, _BUDGET_SETTING, quarantine)
    check_budget(reasons, plan.rows, settings.max_bad_fraction, _BUDGET_SETTING, quarantine)
    manifest = ledger.finalise(output, run.identity, plan, parts, run.model.classes, run.job.schema)
    return ScoreResult(output, manifest, sum(unit.rows for unit in waiting))


def prepare(bundle: str, inputs: Sequence[str], output: str, settings: ScoreSettings) -> Run:
    """Plan a run without writing anything; arguments and errors as in :func:`score`."""
    bundle, output = storage.absolute(bundle), storage.absolute(output)
    model = load_bundle(bundle)
    plan = make_plan(inputs, settings.split, _needs(model, settings), settings.unit_rows, settings.unit_bytes)
    identity = Identity(
        bundle=model.fingerprint,
        input=plan.digest,
        files=plan.files,
        units=len(plan.units),
        rows=plan.rows,
        settings=settings.identity(),
        code=__version__,
    )
    return Run(model, plan, identity, _job(bundle, output, model, settings, plan, identity.digest))


def _needs(bundle: Bundle, settings: ScoreSettings) -> list[Need]:
    """Every column that the run reads from the input, with what to do where one is absent."""
    needs = needs_of(bundle.specs, settings.columns)
    name_it = "name the column of the ids with --set score.id_column=COLUMN"
    is_default = settings.id_column is None
    needs.append(Need(settings.id_column or ID, "the output's id", name_it, "names", optional=is_default))
    if settings.evaluation:
        remedy = f"give an input with the true class in the column {LABEL!r}"
        needs.append(Need(LABEL, "evaluation", remedy, "names"))
    needs += [Need(c, "--set score.passthrough", "leave it out there") for c in settings.passthrough]
    return needs


def _job(bundle: str, output: str, model: Bundle, settings: ScoreSettings, plan: Plan, spec: str) -> Job:
    id_column = settings.id_column or (ID if ID in plan.schema.names else None)
    return Job(
        bundle=bundle,
        fingerprint=model.fingerprint,
        output=output,
        spec=spec,
        schema=output_schema(model, settings, plan.schema, id_column),
        fields=tuple(tuple(settings.columns.get(c, c) for c in s.columns) for s in model.specs),
        id_column=id_column,
        label_column=LABEL if settings.evaluation else None,
        passthrough=settings.passthrough,
        media_root=settings.media_root,
        top_k=min(settings.top_k, len(model.classes)),
        batch_rows=settings.batch_rows,
        threads=settings.threads,
    )


def _score_units(job: Job, units: Sequence[Unit], num_workers: int | None) -> Iterator[Part]:
    """Units through a pool of actors, each of which loads the bundle once; parts as they are committed."""
    if not units:
        return
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
    size = min(num_workers or gpus or max(1, int(cpus)), len(units))
    dataset = ray.data.from_items([unit._asdict() for unit in units], override_num_blocks=len(units))
    receipts = dataset.map_batches(
        ScoreWorker,
        fn_constructor_args=(job,),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=runtime.plan_placement(cpus, size).worker_cpus,
        num_gpus=min(1.0, math.floor(gpus / size * 1e4) / 1e4) if gpus else None,
        compute=ActorPoolStrategy(size=size),
    )
    try:
        for table in receipts.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(table, pa.Table)
            yield from (part_from_receipt(receipt) for receipt in table.to_pylist())
    except ray.exceptions.RayTaskError as error:
        message = (
            f"a worker failed, and would again: {error}\nWhat is committed stays; mend the cause and go on"
        )
        raise XmodalError(message) from error
    except ray.exceptions.RayError as error:
        raise RunAgainError(f"workers were lost: {error}\nThe same command goes on from here") from error
