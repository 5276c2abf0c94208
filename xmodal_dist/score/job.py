"""A scoring run: plan the input, claim the output, let a pool of actors score and commit units, check, finish.

The workers commit; Ray Data only carries units to them and receipts back. So no retry, kill or second driver can lose a
record or score one twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xmodal_dist import storage
from xmodal_dist.bundle import Bundle, load_bundle
from xmodal_dist.dataset.schema import ID, LABEL
from xmodal_dist.errors import CheckpointError, UsageError
from xmodal_dist.profile import ProfileCounts, drift
from xmodal_dist.score import ledger
from xmodal_dist.score.context import Job
from xmodal_dist.score.driver import Driver
from xmodal_dist.score.formats import Identity, ScoreManifest
from xmodal_dist.score.outputs import abstaining, output_schema
from xmodal_dist.score.plan import Plan
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.source import Need, input_schema, is_of_same_files, make_plan, needs_of
from xmodal_dist.score.tally import Tally
from xmodal_dist.task import MULTILABEL
from xmodal_dist.version import __version__

__all__ = ["Run", "ScoreResult", "prepare", "retry", "score"]


class ScoreResult(NamedTuple):
    """A finished run.

    Attributes:
        output: where it is.
        manifest: what it came to.
        rows_scored_now: rows that this command scored itself.
        drift: rows of :func:`xmodal_dist.profile.drift`, input against training data; None if the bundle knows of none.
        goodput: where this command's time went; None if it scored nothing.
    """

    output: str
    manifest: ScoreManifest
    rows_scored_now: int
    drift: list[dict[str, Any]] | None
    goodput: dict[str, Any] | None = None


class Run(NamedTuple):
    """A run before it starts: the model, what to read, what it is, and what its workers share."""

    model: Bundle
    plan: Plan
    identity: Identity
    job: Job


def score(
    bundle: str,
    inputs: Sequence[str],
    output: str,
    settings: ScoreSettings,
    num_workers: int | None = None,
    session: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> ScoreResult:
    """Score an input on Ray; the same call again goes on where it stopped.

    Any number of calls at a time, from any machines, share the work.

    Args:
        bundle: path or URI of the bundle.
        inputs: Parquet files, globs, folders of them, or packed datasets.
        output: path or URI of the output; on several nodes, one that all of them reach.
        settings: how to score.
        num_workers: actors; None takes one per GPU, else one per CPU.
        session: of Ray, entered when there is something to score; by default the one that is there.

    Raises:
        UsageError: an input or column is absent, or the output holds something else.
        DataError: an input file is damaged or changed.
        SpecDiffersError: the output belongs to a run with another bundle, input or settings.
        BudgetExceededError: too many records were rejected; what was scored stays, no manifest is written.
        RunAgainError: Ray lost workers beyond what it repairs by itself; the same call goes on.
    """
    run = prepare(bundle, inputs, output, settings)
    output = run.job.output
    new = ledger.open_run(output, run.identity, run.plan)
    finished = ledger.load_manifest(output)
    if finished is not None:
        return ScoreResult(output, finished, 0, _drift(run.model, finished))
    tally = Tally(run.plan, run.identity.digest)
    driver = Driver(run.plan, run.job, tally, settings)
    with ledger.writing(output), session():
        driver.run(num_workers, from_start=new)
        manifest = ledger.finalise(output, run.identity, tally, run.model.classes, run.job.schema)
        goodput = driver.goodput()
    return ScoreResult(output, manifest, driver.rows, _drift(run.model, manifest), goodput)


def retry(
    bundle: str | None,
    output: str,
    settings: ScoreSettings,
    num_workers: int | None = None,
    session: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> ScoreResult:
    """Score the rejected records of a finished run again, for example after what they refer to was mended.

    What is scored now is added to the output under a new manifest; records that are rejected again stay in the
    quarantine. The same call again goes on where it stopped.

    Args:
        bundle: path or URI of the bundle of the run; None takes it from where the run had it.
        output: path or URI of the run's output.
        settings: those that do not change the output count here; the others are the run's.
        num_workers: as in :func:`score`.
        session: as in :func:`score`.

    Raises:
        UsageError: not a finished run.
        CheckpointError: the bundle is another one.
        DataError: an input file is damaged or changed.
    """
    output = storage.absolute(output)
    identity = ledger.load_identity(output)
    bundle = storage.absolute(bundle or identity.bundle_path)
    before = ledger.load_manifest(output)
    if before is None:
        raise UsageError(f"{output!r} is not finished: give its `xmodal score` command again first")
    model = load_bundle(bundle)
    if model.fingerprint != identity.bundle:
        raise CheckpointError(f"{bundle} is not the bundle of {output}, which is {identity.bundle[:12]}")
    if not before.rows_bad:
        return ScoreResult(output, before, 0, _drift(model, before))
    plan = ledger.load_plan(output, identity)
    files = ledger.load_files(output, before)
    rejected = files.filter(pc.equal(files["role"], "quarantine"))
    expected = np.zeros(len(plan), dtype=np.int64)
    expected[rejected["unit"].to_numpy()] = rejected["rows"].to_numpy()
    paths = dict(zip(rejected["unit"].to_pylist(), rejected["path"].to_pylist(), strict=True))
    fixed = ScoreSettings.model_validate(settings.model_dump() | identity.settings)
    job = _job(bundle, output, model, fixed, input_schema(plan), identity.digest)
    job = replace(job, generation=before.generation + 1, retried=paths)
    tally = Tally(plan, identity.digest, job.generation, expected)
    unlimited = fixed.model_copy(update={"max_bad_fraction": 1.0})
    driver = Driver(plan, job, tally, unlimited)
    with ledger.writing(output), session():
        driver.run(num_workers, from_start=False)
        manifest = ledger.finalise(output, identity, tally, model.classes, job.schema, before)
        goodput = driver.goodput()
    return ScoreResult(output, manifest, driver.rows, _drift(model, manifest), goodput)


def prepare(bundle: str, inputs: Sequence[str], output: str, settings: ScoreSettings) -> Run:
    """Plan a run without writing anything; arguments and errors as in :func:`score`."""
    bundle, output = storage.absolute(bundle), storage.absolute(output)
    model = load_bundle(bundle)
    plan = _plan(inputs, output, model, settings)
    source = input_schema(plan)
    id_column = settings.id_column or (ID if ID in source.names else None)
    settings = settings.model_copy(update={"id_column": id_column})
    identity = Identity(
        bundle=model.fingerprint,
        bundle_path=bundle,
        input=plan.digest,
        files=len(plan.paths),
        units=len(plan),
        rows=plan.num_rows,
        settings=settings.identity(),
        code=__version__,
    )
    return Run(model, plan, identity, _job(bundle, output, model, settings, source, identity.digest))


def _drift(model: Bundle, manifest: ScoreManifest) -> list[dict[str, Any]] | None:
    if model.profile is None:
        return None
    return drift(model.profile, ProfileCounts.from_json(manifest.profile), manifest.label_counts)


def _plan(inputs: Sequence[str], output: str, model: Bundle, settings: ScoreSettings) -> Plan:
    """The plan of the run that is in the output if it is of the same files, which reads no footer; else a new one."""
    needs = _needs(model, settings)
    known = ledger.known_plan(output)
    if known is not None and is_of_same_files(known, inputs, settings.split):
        return known
    return make_plan(inputs, settings.split, needs, settings.unit_rows, settings.unit_bytes)


def _needs(bundle: Bundle, settings: ScoreSettings) -> list[Need]:
    """Every column that the run reads from the input, with what to do where one is absent."""
    needs = needs_of(bundle.specs, settings.columns)
    name_it = "name the column of the ids with --set score.id_column=COLUMN"
    is_default = settings.id_column is None
    needs.append(Need(settings.id_column or ID, "the output's id", name_it, "names", optional=is_default))
    if settings.evaluation:
        remedy = f"give an input with the true class in the column {LABEL!r}"
        holds: Literal["lists", "names"] = "lists" if bundle.task is MULTILABEL else "names"
        needs.append(Need(LABEL, "evaluation", remedy, holds))
    needs += [Need(c, "--set score.passthrough", "leave it out there") for c in settings.passthrough]
    return needs


def _job(
    bundle: str, output: str, model: Bundle, settings: ScoreSettings, source: pa.Schema, spec: str
) -> Job:
    settings = abstaining(model, settings)
    schema = output_schema(model, settings, source, settings.id_column)
    _check_partition(settings.partition_by, schema)
    return Job(
        bundle=bundle,
        fingerprint=model.fingerprint,
        output=output,
        spec=spec,
        schema=schema,
        fields=tuple(tuple(settings.columns.get(c, c) for c in s.columns) for s in model.specs),
        settings=settings,
    )


def _check_partition(column: str | None, schema: pa.Schema) -> None:
    """Folders are named by text, whole numbers, dates or truth values."""
    if column is None:
        return
    if column not in schema.names:
        raise UsageError(
            f"score.partition_by={column!r} is no column of the output; it has {', '.join(schema.names)}. "
            "Columns of the input are there if score.passthrough names them"
        )
    kind = schema.field(column).type
    plain = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)
    if not (plain or pa.types.is_boolean(kind) or pa.types.is_date(kind)):
        raise UsageError(
            f"score.partition_by={column!r} is {kind}; folders are named by text, whole numbers, dates or truth values"
        )
