"""Reads class folders: ``CLASS/x.png``, or ``train|val|test/CLASS/x.png``.

Files of one folder that differ in their suffix only (``x.png``, ``x.wav``) are one record of several fields.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from xmodal_dist import storage
from xmodal_dist.dataset.schema import ID, LABEL, Field
from xmodal_dist.dataset.split import SPLIT_ALIASES
from xmodal_dist.errors import DataError
from xmodal_dist.ingest.source import SPLIT, Source, relative_name
from xmodal_dist.modalities import available, load

__all__ = ["read_folder"]


def read_folder(root: str) -> Source:
    """The records of class folders, sorted by path; columns ``id``, ``label``, ``split`` and one for each kind found.

    Raises:
        DataError: no file of a known kind in a class folder.
    """
    kind_of = {suffix: kind for kind in available() if load(kind).is_media for suffix in load(kind).suffixes}
    names = [relative_name(path, root) for path in storage.list_files(root)]
    has_splits = _has_splits(names)
    depth = 2 if has_splits else 1
    records: dict[str, dict[str, str]] = {}
    left_out: Counter[str] = Counter()
    for name in names:
        parts = name.split("/")
        stem, dot, suffix = name.rpartition(".")
        kind = kind_of.get(f".{suffix.lower()}") if dot else None
        if kind is None or len(parts) <= depth:
            left_out[f".{suffix}" if dot and "/" not in suffix else parts[-1]] += 1
            continue
        key = name if kind in records.get(stem, {}) else stem
        record = records.setdefault(key, {ID: key, LABEL: parts[depth - 1]})
        record[kind] = name
        if has_splits:
            record[SPLIT] = parts[0]
    if not records:
        raise DataError(
            f"{root!r} holds neither tables (CSV, JSONL, Parquet) nor class folders with files of a known kind "
            f"({', '.join(sorted(kind_of))})"
        )
    kinds = sorted({kind for record in records.values() for kind in record} - {ID, LABEL, SPLIT})
    columns = [ID, LABEL, *([SPLIT] if has_splits else []), *kinds]
    return Source(
        table=pa.table({c: pa.array([r.get(c) for r in records.values()], pa.string()) for c in columns}),
        files=tuple(next(r[k] for k in kinds if k in r) for r in records.values()),
        folders=(root,) * len(records),
        file_of=np.arange(len(records), dtype=np.int64),
        row_of=np.zeros(len(records), dtype=np.int64),
        fields=tuple(Field(name=kind, kind=kind, columns=(kind,)) for kind in kinds),
        notes=tuple(
            f"{count} file(s) {suffix!r} left out: not of a known kind in a class folder"
            for suffix, count in sorted(left_out.items())
        ),
    )


def _has_splits(names: list[str]) -> bool:
    """True if every top folder is named like a split and has folders in it."""
    folders = {name.split("/")[0] for name in names if name.count("/") >= 2}
    tops = {name.split("/")[0] for name in names if "/" in name}
    return bool(folders) and tops == folders and all(top.lower() in SPLIT_ALIASES for top in tops)
