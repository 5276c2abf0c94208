"""Packs a source into a dataset: read what is small, choose fields and splits, shuffle, then stream the media.

Read :func:`pack` first. What is in memory at a time: the table of small values, the records in flight, one row group
and one shard. Nothing here knows a kind of field by name.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Setting
from pydantic import model_validator

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import Manifest, Shard, SplitSummary, save_manifest
from xmodal_dist.dataset.quarantine import Rejected, check_budget
from xmodal_dist.dataset.schema import LABEL, Field
from xmodal_dist.dataset.split import SPLITS, Ratio, grouped, hashed, shuffled, stratified, stratified_sets
from xmodal_dist.dataset.writer import (
    ShardLimits,
    ShardWriter,
    remove_dataset,
    require_vacant,
    write_quarantine,
)
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.ingest.fields import Roles, choose_fields, find_roles
from xmodal_dist.ingest.folder import read_folder
from xmodal_dist.ingest.media import ByteSpool
from xmodal_dist.ingest.records import Packed, RecordReader, Roster, call_roll
from xmodal_dist.ingest.source import Source, as_text
from xmodal_dist.ingest.table import find_tables, read_tables
from xmodal_dist.progress import Report
from xmodal_dist.settings import Settings
from xmodal_dist.task import MULTICLASS, Task

__all__ = ["PackSettings", "pack", "read_source"]

_BUDGET_SETTING = "pack.max_bad_fraction"
_RECORDS_IN_FLIGHT_PER_THREAD = 8


class PackSettings(Settings):
    """How to pack."""

    split_ratio: Ratio = (0.8, 0.1, 0.1)
    """Shares of train, val and test where no column tells the split."""
    split_method: Literal["stratified", "grouped", "hash"] = "stratified"
    """Each class by the ratio (as nearly as can be where records are of several); or all records of a group on one
    side; or by the id, whatever else is in the source."""
    label_separator: str | None = Setting(None, min_length=1)
    """What stands between the classes of a label where a record may be of several; lists need none. One that stands
    alone is a record of no class. None takes each text as one class."""
    group_column: str | None = None
    """Column of the group for ``grouped``; a record without a value is a group of its own."""
    seed: int = 0
    """Seed of splitting and of the global shuffle."""
    rows_per_row_group: int = Setting(64, ge=1)
    row_group_bytes: int = Setting(8 << 20, ge=1)
    shard_bytes: int = Setting(128 << 20, ge=1)
    """Shards are closed before they pass this size."""
    max_bad_fraction: float = Setting(0.01, ge=0, le=1)
    """Share of the source's records that may be rejected."""
    max_image_side_px: int | None = Setting(None, ge=1)
    """Images whose shorter side is longer are made smaller; None keeps every byte."""
    audio_sample_rate_hz: int | None = Setting(None, ge=1)
    """Recordings of a higher rate are resampled, to mono; None keeps every byte."""
    num_threads: int = Setting(8, ge=1)
    """Threads that fetch and check media."""

    @model_validator(mode="after")
    def _consistent(self) -> PackSettings:
        if min(self.split_ratio) < 0 or abs(sum(self.split_ratio) - 1) > 1e-6 or self.split_ratio[0] == 0:
            raise ValueError(
                f"split_ratio {self.split_ratio}: expected three shares that sum to 1, the first above 0"
            )
        if (self.group_column is None) == (self.split_method == "grouped"):
            raise ValueError("split_method 'grouped' and group_column need each other")
        return self


_DEFAULTS = PackSettings()


class _Plan(NamedTuple):
    """What is to be packed, known before any media is read."""

    roles: Roles
    fields: tuple[Field, ...]
    roster: Roster
    split_of: NDArray[np.int64]
    notes: tuple[str, ...]


def pack(
    source: str,
    dataset: str,
    *,
    fields: Sequence[Field] | None = None,
    label: str | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    settings: PackSettings = _DEFAULTS,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Manifest:
    """Pack a table or class folders; equal sources and settings give equal bytes.

    Args:
        source: path, URI or glob of CSV, JSONL or Parquet files, a folder of them, or a folder of class folders.
        dataset: folder or URI to write to.
        fields: the fields to pack; None infers them.
        label: column of the class, by default ``label``.
        id_column: column of the id, by default ``id`` if it is there, else ids are ``<file>#<row>``.
        split_column: column of the split, by default ``split`` if it is there and no way to split is set.
        settings: how to pack.
        overwrite: replace a dataset that is there.
        progress: told of every record.

    Returns:
        The manifest, as written.

    Raises:
        UsageError: the source, a column or the output is not as asked for.
        DataError: nothing to train on: no records, one class, no train split, or a file that is damaged as a whole.
        BudgetExceededError: too many records were rejected; the quarantine tells which, no manifest is written.
    """
    target = storage.absolute(dataset)
    require_vacant(target, overwrite)
    if f"{storage.absolute(source)}/".startswith(f"{target}/"):
        raise UsageError(f"the source {source!r} lies in {dataset!r}, the folder to write to; choose another")
    raw = read_source(source, {field.kind for field in fields or ()})
    if not raw.rows:
        raise DataError(f"{source!r} has no records")
    if len(raw.rejected) == raw.rows:
        remove_dataset(target)
        _settle(target, raw.rejected, raw.rows, settings)
        raise DataError(f"none of the {raw.rows} records of {source!r} can be read")
    plan = _plan(raw, fields, label, id_column, split_column, settings)
    # Not before everything that was asked for is known to be there: a typing error must not cost the old dataset.
    remove_dataset(target)
    try:
        manifest = _write_dataset(target, raw, plan, settings, progress)
    except BaseException:
        remove_dataset(target, keep_quarantine=True)
        raise
    save_manifest(target, manifest)
    return manifest


def read_source(source: str, declared: Collection[str] = ()) -> Source:
    """The records of a table, of tables, or of class folders; ``declared``: kinds of the fields that were asked for.

    Raises:
        UsageError: it is not there, or no table.
        DataError: a file is empty or damaged as a whole.
    """
    fs, inner = storage.filesystem(storage.absolute(source))
    root = storage.absolute(source) if storage.is_local(source) else str(fs.unstrip_protocol(inner))
    tables = find_tables(root)
    return read_tables(tables, root) if tables else read_folder(root, declared)


def _plan(
    source: Source,
    fields: Sequence[Field] | None,
    label: str | None,
    id_column: str | None,
    split_column: str | None,
    settings: PackSettings,
) -> _Plan:
    """Choose columns, fields and splits, and refuse what cannot be trained on."""
    asked_to_split = sorted({"split_ratio", "split_method"} & settings.model_fields_set)
    roles = find_roles(
        source,
        label=label,
        id_column=id_column,
        split_column=split_column,
        group=settings.group_column,
        take_split=not asked_to_split,
    )
    chosen, notes = choose_fields(source, fields, roles)
    if roles.split is not None and split_column is None:
        notes.append(f"the splits are those of the column {roles.split!r}")
    if roles.split is not None and asked_to_split:
        names = " and ".join(f"pack.{name}" for name in asked_to_split)
        notes.append(f"{names} had no effect: the splits are those of the column {roles.split!r}")
    if roles.weight is not None:
        notes.append(f"the column {roles.weight!r} is the weight of the records")
    roster = call_roll(source, roles, settings.label_separator)
    split_of = _split(source, roster, roles, settings)
    known = (label for label in roster.labels if label is not None)
    classes = {name for label in known for name in roster.task.classes_of(label)}
    _require_classes(classes, roles, roster.task, rejected=0)
    if (
        not roster.rejected
    ):  # else the train split may be empty because of them, which the quarantine has to tell
        _require_train(int(np.sum(split_of == 0)), roles, rejected=0)
    return _Plan(roles, chosen, roster, split_of, tuple(notes))


def _is_of_label(note: str, source: Source, roles: Roles) -> bool:
    """Whether a note says that the label column is left out: as a list it is no feature, but a label."""
    return roles.label in source.lists and note.startswith(f"column {roles.label!r} left out:")


def _write_dataset(
    target: str, source: Source, plan: _Plan, settings: PackSettings, progress: Report | None
) -> Manifest:
    """Write everything but the manifest."""
    rejected = [*source.rejected, *plan.roster.rejected]
    summaries, shards = _write_splits(target, source, plan, settings, rejected, progress)
    _settle(target, rejected, source.rows, settings)
    classes = sorted(set().union(*(summary.classes for summary in summaries.values())))
    _require_classes(classes, plan.roles, plan.roster.task, len(rejected))
    _require_train(summaries["train"].rows, plan.roles, len(rejected))
    packed = sum(summary.rows for summary in summaries.values())
    assert packed + len(rejected) == source.rows, "records were lost while packing"
    empty = [f"the split {split!r} is empty" for split in SPLITS if not summaries[split].rows]
    return Manifest(
        task=plan.roster.task.name,
        fields=plan.fields,
        classes=tuple(classes),
        splits=summaries,
        shards=tuple(shards),
        source_rows=source.rows,
        quarantined_rows=len(rejected),
        has_weights=plan.roster.weights is not None,
        seed=settings.seed,
        notes=(*(n for n in source.notes if not _is_of_label(n, source, plan.roles)), *plan.notes, *empty),
    )


def _settle(target: str, rejected: Sequence[Rejected], rows: int, settings: PackSettings) -> None:
    write_quarantine(target, rejected)
    check_budget(rejected, rows, settings.max_bad_fraction, _BUDGET_SETTING)


def _require_classes(names: Collection[str], roles: Roles, task: Task, rejected: int) -> None:
    """``rejected`` is how many records are left out already; of label sets, one class can be there or not."""
    fewest, words = (2, "two or more") if task is MULTICLASS else (1, "one or more")
    if len(names) >= fewest:
        return
    what = f"one class only, {next(iter(names))!r}" if names else "no label"
    if rejected:
        raise DataError(
            f"without the {rejected} rejected record(s) the label column {roles.label!r} has {what}: a classifier "
            f"needs {words}. The quarantine tells why they were rejected"
        )
    raise DataError(f"the label column {roles.label!r} has {what}: a classifier needs {words}. Check --label")


def _require_train(rows: int, roles: Roles, rejected: int) -> None:
    if rows:
        return
    place = f"no record of the column {roles.split!r} is of it; check --split"
    if rejected:
        place = f"{rejected} record(s) were rejected; the quarantine tells why"
    elif roles.split is None:
        place = "set --split-ratio"
    raise DataError(f"the train split is empty, there is nothing to train on: {place}")


def _split(source: Source, roster: Roster, roles: Roles, settings: PackSettings) -> NDArray[np.int64]:
    """[n] split of every record of the roster."""
    if roster.declared is not None:
        return roster.declared
    ids = [roster.ids[row] for row in roster.rows]
    if settings.split_method == "hash":
        return hashed(ids, settings.split_ratio, settings.seed)
    if roles.group is not None:
        groups = as_text(source.table.column(roles.group)).to_pylist()
        # A prefix keeps a record without a group apart from a group of that name.
        names = [
            f"id/{i}" if groups[row] is None else f"group/{groups[row]}"
            for row, i in zip(roster.rows, ids, strict=True)
        ]
        return grouped(names, settings.split_ratio, settings.seed)
    labels = [roster.task.classes_of(roster.labels[row]) for row in roster.rows]
    if roster.task is MULTICLASS:
        return stratified([name for (name,) in labels], settings.split_ratio, settings.seed)
    return stratified_sets(labels, settings.split_ratio, settings.seed)


def _write_splits(
    target: str,
    source: Source,
    plan: _Plan,
    settings: PackSettings,
    rejected: list[Rejected],
    progress: Report | None,
) -> tuple[dict[str, SplitSummary], list[Shard]]:
    """Check and write every record of the roster; those that fail are appended to ``rejected``."""
    spooled = [c for field in plan.fields for c in field.columns if c in source.byte_columns]
    shards: list[Shard] = []
    counts = {split: Counter[str]() for split in SPLITS}
    written = Counter[str]()
    missing = {split: Counter[str]() for split in SPLITS}
    done = source.rows - len(plan.roster.rows)
    limits = ShardLimits(settings.rows_per_row_group, settings.row_group_bytes, settings.shard_bytes)
    in_flight = settings.num_threads * _RECORDS_IN_FLIGHT_PER_THREAD
    with ByteSpool(source, spooled) as spool, ThreadPoolExecutor(settings.num_threads, "pack") as pool:
        reader = RecordReader(
            source,
            plan.roster,
            plan.fields,
            spool,
            max_image_side_px=settings.max_image_side_px,
            audio_sample_rate_hz=settings.audio_sample_rate_hz,
        )
        for index, split in enumerate(SPLITS):
            writer = ShardWriter(target, split, reader.schema, limits)
            rows = shuffled(plan.roster.rows[plan.split_of == index], split, settings.seed)
            for record in _in_order(pool, reader.read, rows.tolist(), in_flight):
                done += 1
                if isinstance(record, Rejected):
                    rejected.append(record)
                else:
                    writer.add(record.values)
                    written[split] += 1
                    counts[split].update(plan.roster.task.classes_of(record.values[LABEL]))
                    missing[split].update(record.missing)
                if progress is not None:
                    progress(done, len(rejected), source.rows)
            shards += writer.close()
    classes = sorted(set().union(*counts.values()))
    summaries = {
        split: SplitSummary(
            rows=written[split],
            classes={name: counts[split][name] for name in classes},
            missing={field.name: missing[split][field.name] for field in plan.fields},
        )
        for split in SPLITS
    }
    return summaries, shards


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], Packed | Rejected], rows: Iterable[int], in_flight: int
) -> Iterator[Packed | Rejected]:
    """Results in the order of ``rows``, at most ``in_flight`` of them under way."""
    pending: deque[Future[Packed | Rejected]] = deque()
    for row in rows:
        pending.append(pool.submit(work, row))
        if len(pending) >= in_flight:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
