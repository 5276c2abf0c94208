"""What is in a packed dataset, as tables, and what looks wrong in it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import Manifest, load_manifest
from xmodal_dist.dataset.schema import ID, LABEL
from xmodal_dist.dataset.split import SPLITS
from xmodal_dist.errors import DataError, UsageError
from xmodal_dist.task import MULTILABEL

__all__ = ["Finding", "Inspection", "inspect_dataset", "render_inspection"]

_IMBALANCE_RATIO = 10
_FEW_RECORDS = 5
_SMALL_SPLIT_ROWS = 50
_LARGE_ROW_GROUP_BYTES = 64 << 20
_MAX_SHOWN = 40
_LABEL_SETS = {
    "cardinality": "classes a record",
    "without_class": "of no class",
    "distinct": "different sets",
}


@dataclass(frozen=True)
class Finding:
    """Something to look at; a warning where results may suffer."""

    level: Literal["warning", "note"]
    text: str


@dataclass(frozen=True)
class Inspection:
    """A dataset in numbers; all values are JSON-able.

    Attributes:
        splits: name -> rows.
        classes: name -> split -> rows.
        label_sets: of a multilabel dataset, split -> ``cardinality`` (classes a record), ``without_class`` (records of
            none) and ``distinct`` (sets that occur); else empty.
        fields: per field ``name``, ``kind``, ``columns`` and ``missing``: split -> share of its rows.
        shards: per file ``path``, ``rows``, ``row_groups`` and ``bytes``.
        source_rows: records of the source.
        quarantined: reason code -> records.
        findings: what looks wrong.
    """

    splits: dict[str, int]
    classes: dict[str, dict[str, int]]
    label_sets: dict[str, dict[str, float]]
    fields: list[dict[str, Any]]
    shards: list[dict[str, Any]]
    source_rows: int
    quarantined: dict[str, int]
    findings: list[Finding]


def inspect_dataset(dataset: str) -> Inspection:
    """Read a dataset's manifest, and its records once to find duplicates.

    Raises:
        UsageError: no dataset there.
        DataError: its manifest or a shard is damaged.
    """
    manifest = load_manifest(dataset)
    summaries = {name: manifest.splits[name] for name in sorted(manifest.splits, key=_place)}
    splits = {name: summary.rows for name, summary in summaries.items()}
    quarantined = _quarantined(dataset)
    findings = [
        *_size_findings(manifest),
        *_field_findings(manifest),
        *_duplicate_findings(dataset, manifest),
        *_class_findings(manifest),
    ]
    notes = list(manifest.notes)
    if manifest.quarantined_rows:
        share = manifest.quarantined_rows / max(manifest.source_rows, 1)
        notes.insert(0, f"{manifest.quarantined_rows} records ({share:.2%}) are in the quarantine")
    return Inspection(
        splits=splits,
        classes={c: {s: v.classes.get(c, 0) for s, v in summaries.items()} for c in manifest.classes},
        label_sets={s: _label_sets(dataset, manifest, s) for s in splits} if _is_multilabel(manifest) else {},
        fields=[
            {
                "name": field.name,
                "kind": field.kind,
                "columns": list(field.columns),
                "missing": {s: v.missing.get(field.name, 0) / max(v.rows, 1) for s, v in summaries.items()},
            }
            for field in manifest.fields
        ],
        shards=[
            {"path": s.path, "rows": s.rows, "row_groups": len(s.row_groups), "bytes": s.bytes}
            for s in manifest.shards
        ],
        source_rows=manifest.source_rows,
        quarantined=quarantined,
        findings=[*(Finding("note", note) for note in notes), *findings],
    )


def render_inspection(inspection: Inspection) -> list[Table | Text]:
    """The tables and findings for a terminal; names are shown as they are, brackets too."""
    splits = list(inspection.splits)
    fields = _table("field", "kind", "columns", *(f"missing {s}" for s in splits))
    for field in inspection.fields:
        shares = [f"{field['missing'][s]:.1%}" for s in splits]
        fields.add_row(Text(field["name"]), Text(field["kind"]), Text(", ".join(field["columns"])), *shares)
    classes = _table("class", *splits)
    for name, counts in list(inspection.classes.items())[:_MAX_SHOWN]:
        classes.add_row(Text(name), *(str(counts[s]) for s in splits))
    if len(inspection.classes) > _MAX_SHOWN:
        classes.add_row(f"... {len(inspection.classes) - _MAX_SHOWN} more classes", *("" for _ in splits))
    classes.add_section()
    classes.add_row("all", *(str(rows) for rows in inspection.splits.values()))
    for name, title in _LABEL_SETS.items() if inspection.label_sets else ():
        classes.add_row(title, *(f"{inspection.label_sets[s][name]:.4g}" for s in splits))
    shards = _table("shard", "rows", "row groups", "MiB")
    for shard in inspection.shards[:_MAX_SHOWN]:
        size = f"{shard['bytes'] / (1 << 20):.1f}"
        shards.add_row(shard["path"], str(shard["rows"]), str(shard["row_groups"]), size)
    if len(inspection.shards) > _MAX_SHOWN:
        shards.add_row(f"... {len(inspection.shards) - _MAX_SHOWN} more shards", "", "", "")
    bad = sum(inspection.quarantined.values())
    total = f"{inspection.source_rows} records read = {sum(inspection.splits.values())} packed + {bad} quarantined"
    findings = [f"{finding.level}: {finding.text}" for finding in inspection.findings[:_MAX_SHOWN]]
    if len(inspection.findings) > _MAX_SHOWN:
        findings.append(f"... {len(inspection.findings) - _MAX_SHOWN} more findings")
    reasons = [f"quarantine: {reason} {count}" for reason, count in inspection.quarantined.items()]
    lines = [total, *reasons, *(findings or ["nothing looks wrong"])]
    return [fields, classes, shards, *(Text(line) for line in lines)]


def _is_multilabel(manifest: Manifest) -> bool:
    return manifest.task == MULTILABEL.name


def _label_sets(dataset: str, manifest: Manifest, split: str) -> dict[str, float]:
    """Of one split of a multilabel dataset."""
    found = Counter[tuple[str, ...]](
        tuple(record[LABEL])
        for shard in manifest.shards
        if shard.split == split
        for record in _records(dataset, shard.path, [LABEL])
    )
    classes = sum(len(labels) * rows for labels, rows in found.items())
    return {
        "cardinality": classes / max(found.total(), 1),
        "without_class": found[()],
        "distinct": len(found),
    }


def _place(split: str) -> int:
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False)


def _class_findings(manifest: Manifest) -> list[Finding]:
    findings = []
    train = manifest.splits["train"].classes
    counts = {name: train.get(name, 0) for name in manifest.classes}
    if _is_multilabel(manifest):
        findings += [
            Finding(
                "warning",
                f"class {name!r} is that of every training record: there is nothing to learn about it",
            )
            for name, count in counts.items()
            if count == manifest.splits["train"].rows
        ]
    smallest, largest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[largest] > _IMBALANCE_RATIO * max(counts[smallest], 1):
        findings.append(
            Finding(
                "warning",
                f"classes are unbalanced: {largest!r} has {counts[largest]} training records, {smallest!r} "
                f"{counts[smallest]}; consider train.class_weights=balanced",
            )
        )
    for name, count in counts.items():
        if count == 0:
            others = {split: summary.classes.get(name, 0) for split, summary in manifest.splits.items()}
            where = ", ".join(f"{rows} in {split}" for split, rows in others.items() if rows)
            text = f"class {name!r} has no training record, but {where or 'is listed'}: it will never be predicted"
            findings.append(Finding("warning", text))
        elif count < _FEW_RECORDS:
            findings.append(Finding("warning", f"class {name!r} has only {count} training records"))
    return findings


def _field_findings(manifest: Manifest) -> list[Finding]:
    findings = []
    rows = sum(summary.rows for summary in manifest.splits.values())
    for field in manifest.fields:
        missing = sum(summary.missing.get(field.name, 0) for summary in manifest.splits.values())
        if 2 * missing > rows:
            share = f"{missing / rows:.0%} of the records"
            findings.append(Finding("warning", f"field {field.name!r} is missing in {share}"))
    return findings


def _size_findings(manifest: Manifest) -> list[Finding]:
    findings = []
    for split in ("val", "test"):
        rows = manifest.splits[split].rows if split in manifest.splits else 0
        if rows == 0:
            use = (
                "the best epoch is chosen by the training loss"
                if split == "val"
                else "nothing to evaluate on"
            )
            findings.append(Finding("warning", f"there is no {split} split: {use}"))
        elif rows < _SMALL_SPLIT_ROWS:
            findings.append(
                Finding("warning", f"the {split} split has only {rows} records: its figures are rough")
            )
    largest = max((g.bytes for shard in manifest.shards for g in shard.row_groups), default=0)
    if largest > _LARGE_ROW_GROUP_BYTES:
        remedy = "pack with a smaller pack.row_group_bytes"
        findings.append(Finding("warning", f"the largest row group has {largest >> 20} MiB: {remedy}"))
    return findings


def _duplicate_findings(dataset: str, manifest: Manifest) -> list[Finding]:
    """Records of different splits that are equal byte for byte, as a whole or in one media value; hashes are kept."""
    columns = [column for field in manifest.fields for column in field.columns]
    first: dict[tuple[str, bytes], tuple[str, str]] = {}
    pairs = Counter[tuple[str, str, str]]()
    examples: dict[tuple[str, str, str], tuple[str, str]] = {}
    for shard in manifest.shards:
        for record in _records(dataset, shard.path, [ID, *columns]):
            found = False
            for part, digest in _content_hashes(record, columns):
                split, record_id = first.setdefault((part, digest), (shard.split, record[ID]))
                if split != shard.split and not found:
                    found = True  # a record equal as a whole is not named again for its parts
                    pairs[part, split, shard.split] += 1
                    examples.setdefault((part, split, shard.split), (record_id, record[ID]))
    return [
        Finding(
            "warning",
            f"{count} records of {second} are equal to records of {one}{f' in {part!r}' if part else ''}, for example "
            f"{examples[part, one, second][1]!r} and {examples[part, one, second][0]!r}: "
            f"results on {second} will flatter",
        )
        for (part, one, second), count in sorted(pairs.items())
    ]


def _records(dataset: str, path: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The records of a shard; one row group is in memory at a time."""
    with (
        _damage_named(dataset, path),
        storage.open_read(storage.join(dataset, path)) as handle,
        pq.ParquetFile(handle) as file,
    ):
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=columns).select(columns).to_pylist()


@contextmanager
def _damage_named(dataset: str, path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError, UsageError) as error:
        raise DataError(
            f"{path} cannot be read: {str(error).rstrip('.')}. `xmodal verify {dataset}` lists all that is damaged"
        ) from error


def _content_hashes(record: dict[str, Any], columns: list[str]) -> list[tuple[str, bytes]]:
    """(``""``, hash of all values), then (column, hash) of each media value; none for a record without values."""
    values = {column: record[column] for column in columns if record[column] is not None}
    media = [(column, _hash(value)) for column, value in values.items() if isinstance(value, bytes)]
    rest = repr([(c, v) for c, v in values.items() if not isinstance(v, bytes)]).encode()
    whole = _hash(b"".join([*(column.encode() + digest for column, digest in media), rest]))
    return [("", whole), *media] if values else []


def _hash(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).digest()


def _quarantined(dataset: str) -> dict[str, int]:
    folder = storage.join(dataset, "quarantine")
    reasons = Counter[str]()
    for path in storage.list_files(folder, ".parquet") if storage.exists(folder) else []:
        with _damage_named(dataset, path), storage.open_read(path) as handle:
            reasons.update(pq.read_table(handle, columns=["reason"]).column("reason").to_pylist())
    return dict(reasons.most_common())
