"""Rows of a dataset's split as features, read and decoded in threads; nothing decoded is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xmodal_dist import runtime, storage
from xmodal_dist.baselines.features import Blocks, extract
from xmodal_dist.dataset.manifest import Manifest
from xmodal_dist.dataset.plan import Unit, row_group_units
from xmodal_dist.dataset.schema import ID, LABEL
from xmodal_dist.errors import DataError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.ahead import map_ahead
from xmodal_dist.pipeline.decode import decode_table
from xmodal_dist.pipeline.rows import one_chunk, plain, read_rows

__all__ = ["Rows", "join", "read_split"]

_MAX_DECODERS = 8
_SAMPLE_SEED = 0


class Rows(NamedTuple):
    """Features of n records.

    Attributes:
        ids: [n] strings.
        labels: [n] class index.
        present: per field [n] bool, which records have it.
        fields: per field its blocks of features.
        rejected: records beside these that have a value that cannot be decoded.
    """

    ids: list[str]
    labels: NDArray[np.int64]
    present: dict[str, NDArray[np.bool_]]
    fields: dict[str, Blocks]
    rejected: int


def read_split(
    dataset: str,
    manifest: Manifest,
    split: str,
    specs: Sequence[FieldSpec],
    classes: Sequence[str],
    max_rows: int | None,
) -> Iterator[Rows]:
    """The records of a split in order, a row group at a time.

    Args:
        dataset: path or URI.
        manifest: its manifest.
        split: which split.
        specs: the fields, as the network reads them.
        classes: class names by index.
        max_rows: at most this many, drawn at random, always the same; None reads all.

    Raises:
        DataError: a label that is none of the classes, or a file that cannot be read.
    """
    columns = [ID, LABEL, *(c for spec in specs for c in spec.columns)]

    def read(part: tuple[Unit, NDArray[np.int64]]) -> Rows:
        path = storage.join(dataset, manifest.shards[part[0].shard].path)
        return _decoded(path, read_rows(path, part[1], columns), specs, classes)

    units = row_group_units(manifest, split)
    parts = _sampled(units, sum(unit.rows for unit in units), max_rows)
    decoders = min(runtime.usable_cores(), _MAX_DECODERS)
    with ThreadPoolExecutor(decoders, thread_name_prefix="baselines") as pool:
        yield from map_ahead(read, parts, pool, ahead=decoders)


def join(parts: Sequence[Rows]) -> Rows:
    """The same rows as one."""
    return Rows(
        ids=[i for part in parts for i in part.ids],
        labels=np.concatenate([part.labels for part in parts]),
        present={f: np.concatenate([part.present[f] for part in parts]) for f in parts[0].present},
        fields={
            field: {name: np.concatenate([part.fields[field][name] for part in parts]) for name in blocks}
            for field, blocks in parts[0].fields.items()
        },
        rejected=sum(part.rejected for part in parts),
    )


def _sampled(
    units: Sequence[Unit], total: int, max_rows: int | None
) -> Iterator[tuple[Unit, NDArray[np.int64]]]:
    """Each unit with the rows of its file that are wanted; units without any are left out."""
    wanted = np.arange(total)
    if max_rows is not None and total > max_rows:
        wanted = np.sort(np.random.default_rng(_SAMPLE_SEED).choice(total, max_rows, replace=False))
    position = 0
    for unit in units:
        first, last = np.searchsorted(wanted, [position, position + unit.rows])
        if last > first:
            yield unit, wanted[first:last] - position + unit.start
        position += unit.rows


def _decoded(path: str, table: pa.Table, specs: Sequence[FieldSpec], classes: Sequence[str]) -> Rows:
    labels = pc.index_in(plain(table.column(LABEL)), pa.array(classes, pa.string())).combine_chunks()
    if labels.null_count:
        row = int(np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(
            f"{path}: the record {table.column(ID)[row].as_py()!r} has the label "
            f"{table.column(LABEL)[row].as_py()!r}, which is no class of the bundle; train on this dataset, or compare "
            "on the one that the bundle was trained on"
        )
    decoded = decode_table(table, specs, None)
    usable = np.setdiff1d(np.arange(table.num_rows), [error.row for error in decoded.errors])
    fields = {
        spec.name: extract(
            spec, decoded.fields[spec.name], [one_chunk(table.column(c)) for c in spec.columns]
        )
        for spec in specs
    }
    ids = table.column(ID).to_pylist()
    return Rows(
        ids=[str(ids[row]) for row in usable.tolist()],
        labels=labels.to_numpy().astype(np.int64)[usable],
        present={spec.name: decoded.present[usable, i] for i, spec in enumerate(specs)},
        fields={f: {name: block[usable] for name, block in blocks.items()} for f, blocks in fields.items()},
        rejected=table.num_rows - len(usable),
    )
