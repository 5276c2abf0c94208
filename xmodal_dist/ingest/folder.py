"""Reads class folders: ``CLASS/x.png``, or ``train|val|test/CLASS/x.png``.

Files of one folder that differ in their suffix only (``x.png``, ``x.wav``) are one record of several fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import pyarrow as pa

from xmodal_dist import storage
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.schema import ID, LABEL, Field
from xmodal_dist.dataset.split import SPLIT_ALIASES
from xmodal_dist.errors import DataError
from xmodal_dist.ingest.source import SPLIT, Source, relative_name
from xmodal_dist.modalities import available, load

__all__ = ["read_folder"]


def read_folder(root: str, declared: Collection[str] = ()) -> Source:
    """The records of class folders, sorted by path; columns ``id``, ``label``, ``split`` and one for each kind found.

    Args:
        root: the folder.
        declared: kinds of the fields that were asked for; a file that may be of two kinds is of one of these.

    Raises:
        DataError: no file of a known kind in a class folder.
    """
    kind_of = {suffix: kind for kind in available() if load(kind).is_media for suffix in load(kind).suffixes}
    kind_of |= {suffix: kind for kind in sorted(declared) for suffix in load(kind).declared_suffixes}
    names = [relative_name(path, root) for path in storage.list_files(root)]
    suffixes = tuple(kind_of)
    has_splits, split_notes = _split_level([name for name in names if name.lower().endswith(suffixes)])
    depth = 2 if has_splits else 1
    records: dict[str, dict[str, str]] = {}
    left_out: Counter[str] = Counter()
    rejected: list[Rejected] = []
    for name in names:
        parts = name.split("/")
        stem, dot, suffix = name.rpartition(".")
        kind = kind_of.get(f".{suffix.lower()}") if dot else None
        if kind is None or len(parts) <= depth:
            left_out[_shown(f".{suffix}" if dot and "/" not in suffix else parts[-1])] += 1
            continue
        if _shown(name) != name:
            rejected.append(
                Rejected(_shown(name), 0, "", kind, "text_not_utf8", "rename the file: its name is not UTF-8")
            )
            continue
        key = name if kind in records.get(stem, {}) else stem
        record = records.setdefault(key, {ID: key, LABEL: parts[depth - 1]})
        record[kind] = name
        if has_splits:
            record[SPLIT] = parts[0]
    if not records and not rejected:
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
        rejected=tuple(rejected),
        notes=(
            *split_notes,
            *(
                f"{count} file(s) {suffix!r} left out: not of a known kind in a class folder"
                for suffix, count in sorted(left_out.items())
            ),
        ),
    )


def _split_level(media: list[str]) -> tuple[bool, tuple[str, ...]]:
    """True if the top folders are splits: all are named like one, and one has folders in it; and a note if some are."""
    tops = sorted({name.split("/")[0] for name in media if "/" in name})
    nested = {name.split("/")[0] for name in media if name.count("/") >= 2}
    alike = [top for top in tops if top.lower() in SPLIT_ALIASES]
    if not nested & set(alike):
        return False, ()
    if alike == tops:
        return True, ()
    other = next(top for top in tops if top not in alike)
    what = f"the folder(s) {', '.join(map(repr, alike))} are taken as classes, not as splits"
    return False, (f"{what}, for {_shown(other)!r} beside them is no split",)


def _shown(name: str) -> str:
    """A file's name as text, also where it is not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
