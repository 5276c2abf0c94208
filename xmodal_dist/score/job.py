"""A scoring run: plan the input, claim the output, let a pool of actors score and commit units, check, finish.

The workers commit; Ray Data only carries units to them and receipts back. So no retry, kill or second driver can lose a
record or score one twice.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xmodal_dist import storage
from xmodal_dist.bundle import Bundle, load_bundle
from xmodal_dist.dataset.quarantine import check_budget
from xmodal_dist.dataset.schema import ID, LABEL
from xmodal_dist.errors import BudgetExceededError, CheckpointError, UsageError
from xmodal_dist.progress import ConsoleProgress
from xmodal_dist.score import ledger
from xmodal_dist.score.commit import QUARANTINE
from xmodal_dist.score.feed import score_units
from xmodal_dist.score.formats import Identity, Part, Receipt, ScoreManifest
from xmodal_dist.score.outputs import output_schema
from xmodal_dist.score.plan import Plan
from xmodal_dist.score.scorer import Job
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.source import Need, input_schema, is_of_same_files, make_plan, needs_of
from xmodal_dist.score.tally import Tally
from xmodal_dist.version import __version__

__all__ = ["Run", "ScoreResult", "prepare", "retry", "score"]

_TICK_S = 5.0
_RECEIPTS_EVERY_S = 10.0


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
        return ScoreResult(output, finished, 0)
    tally = Tally(run.plan, run.identity.digest)
    with ledger.writing(output), session():
        scored = _Driver(run, tally, settings).run(num_workers, from_start=new)
    manifest = ledger.finalise(output, run.identity, tally, run.model.classes, run.job.schema)
    return ScoreResult(output, manifest, scored)


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
        return ScoreResult(output, before, 0)
    plan = ledger.load_plan(output, identity)
    files = ledger.load_files(output, before)
    rejected = files.filter(pc.equal(files["role"], "quarantine"))
    expected = np.zeros(len(plan), dtype=np.int64)
    expected[rejected["unit"].to_numpy()] = rejected["rows"].to_numpy()
    paths = dict(zip(rejected["unit"].to_pylist(), rejected["path"].to_pylist(), strict=True))
    fixed = ScoreSettings.model_validate(settings.model_dump() | identity.settings)
    job = _job(bundle, output, model, fixed, input_schema(plan), identity.digest)
    job = replace(job, generation=before.generation + 1, retried=paths)
    run = Run(model, plan, identity, job)
    tally = Tally(plan, identity.digest, job.generation, expected)
    unlimited = fixed.model_copy(update={"max_bad_fraction": 1.0})
    with ledger.writing(output), session():
        scored = _Driver(run, tally, unlimited).run(num_workers, from_start=False)
    manifest = ledger.finalise(output, identity, tally, model.classes, job.schema, before)
    return ScoreResult(output, manifest, scored)


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
    return Run(
        model, plan, identity, _job(bundle, output, model, settings, input_schema(plan), identity.digest)
    )


def _plan(inputs: Sequence[str], output: str, model: Bundle, settings: ScoreSettings) -> Plan:
    """The plan of the run that is in the output if it is of the same files, which reads no footer; else a new one."""
    needs = _needs(model, settings)
    known = ledger.known_plan(output)
    if known is not None and is_of_same_files(known, inputs, settings.split):
        return known
    return make_plan(inputs, settings.split, needs, settings.unit_rows, settings.unit_bytes)


class _Driver:
    """One command's share of a generation of a run: hands out units, and keeps the account."""

    def __init__(self, run: Run, tally: Tally, settings: ScoreSettings) -> None:
        self._run, self._tally, self._settings = run, tally, settings
        self._output = run.job.output
        self._partitioned = run.job.settings.partition_by is not None
        now = datetime.datetime.now(datetime.timezone.utc)
        self._name = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        self._unwritten: list[Part] = []
        self._receipts = 0
        self._written_s = time.monotonic()

    def run(self, num_workers: int | None, *, from_start: bool) -> int:
        """Until every unit has its part, by whomever; rows that this driver's workers scored.

        ``from_start``: begin at the first unit; others begin anywhere, as drivers that share the work should not meet.
        """
        waiting = self._take_up()
        if not from_start:
            waiting = np.roll(waiting, uuid.uuid4().int % max(1, len(waiting)))
        scored = 0
        with ConsoleProgress("scoring", before=self._tally.rows_in) as progress:
            total = int(self._tally.expected.sum())
            try:
                for receipt in self._scored(waiting, num_workers) if len(waiting) else ():
                    scored += receipt.part.footer.rows_in if receipt.scored else 0
                    self._account(receipt.part)
                    progress(self._tally.rows_in, self._tally.rows_bad, total)
            finally:
                self._write_receipts()
        for part in ledger.read_parts(
            self._output, self._others().tolist(), self._run.job.generation, self._partitioned
        ):
            self._account(part)
        self._write_receipts()
        return scored

    def _take_up(self) -> NDArray[np.int64]:
        """Account for what drivers before have written down; the units that are not committed."""
        committed = np.zeros(len(self._run.plan), dtype=np.bool_)
        committed[self._committed()] = True
        for part in ledger.read_receipts(self._output):
            footer = part.footer
            if footer.generation == self._run.job.generation and committed[footer.unit]:
                self._tally.add(part)
        self._check_budget()
        return np.flatnonzero(~committed & (self._tally.expected > 0))

    def _scored(self, waiting: NDArray[np.int64], num_workers: int | None) -> Iterator[Receipt]:
        """Receipts until all units are committed; ends early if others committed those that our workers hang on."""
        for receipt in score_units(self._run.job, self._run.plan, waiting.tolist(), num_workers, _TICK_S):
            if receipt is not None:
                yield receipt
            elif len(self._others()) == len(self._tally.missing()):
                return

    def _others(self) -> NDArray[np.int64]:
        """Units that are committed, but not accounted for."""
        return np.intersect1d(self._committed(), self._tally.missing())

    def _committed(self) -> NDArray[np.int64]:
        units = ledger.committed_units(self._output, self._run.job.generation, self._partitioned)
        return units[units < len(self._run.plan)]

    def _account(self, part: Part) -> None:
        if self._tally.add(part):
            self._unwritten.append(part)
        if time.monotonic() - self._written_s > _RECEIPTS_EVERY_S:
            self._write_receipts()
        self._check_budget()

    def _write_receipts(self) -> None:
        if self._unwritten:
            ledger.write_receipts(self._output, self._name, self._receipts, self._unwritten)
            self._receipts += 1
            self._unwritten.clear()
        self._written_s = time.monotonic()

    def _check_budget(self) -> None:
        """Against the rows of the whole plan and of whole files: the run stops as soon as its end is certain."""
        plan, tally, settings = self._run.plan, self._tally, self._settings
        place = storage.join(self._output, QUARANTINE)
        limit = settings.max_bad_fraction
        check_budget(tally.reasons, plan.num_rows, limit, "score.max_bad_fraction", place)
        over = np.flatnonzero(tally.bad_by_file > settings.max_bad_fraction_per_file * tally.rows_by_file)
        if len(over):
            file = int(over[0])
            bad, rows = int(tally.bad_by_file[file]), int(tally.rows_by_file[file])
            raise BudgetExceededError(
                f"{plan.paths[file]}: {bad} of {rows} records were rejected, more than "
                f"score.max_bad_fraction_per_file={settings.max_bad_fraction_per_file:g} allows; see {place}"
            )


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


def _job(
    bundle: str, output: str, model: Bundle, settings: ScoreSettings, source: pa.Schema, spec: str
) -> Job:
    schema = output_schema(model, settings, source, settings.id_column)
    _check_partition(settings.partition_by, schema)
    return Job(
        bundle=bundle,
        fingerprint=model.fingerprint,
        output=output,
        spec=spec,
        schema=schema,
        fields=tuple(tuple(settings.columns.get(c, c) for c in s.columns) for s in model.specs),
        id_column=settings.id_column,
        label_column=LABEL if settings.evaluation else None,
        passthrough=settings.passthrough,
        media_root=settings.media_root,
        threads=settings.threads,
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
