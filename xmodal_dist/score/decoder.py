"""Reads and decodes the rows of units; knows no device, so that it runs in a worker's threads or on another node.

Rows stay in input order; a record that cannot be used is noted with its reason, never left out.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xmodal_dist import storage
from xmodal_dist.batch import Arrays, Records
from xmodal_dist.bundle import Bundle
from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.decode import RowError, decode_table
from xmodal_dist.pipeline.fetch import fetch_media
from xmodal_dist.pipeline.rows import plain
from xmodal_dist.profile import Profile, ProfileCounts, count
from xmodal_dist.score.context import Job
from xmodal_dist.score.plan import Unit
from xmodal_dist.score.source import read_unit

__all__ = ["DecodedBatch", "Decoder", "RowBatch", "note_faults", "records_of"]

_FETCHES_PER_THREAD = 8


class RowBatch(NamedTuple):
    """Rows of a unit as read.

    Attributes:
        rows: encoded values and copied columns.
        first_row: number of the first one in the input file.
        read_s: seconds that reading them took.
    """

    rows: pa.Table
    first_row: int
    read_s: float


class DecodedBatch(NamedTuple):
    """A micro-batch before prediction.

    Attributes:
        copied: of all rows, the columns that go to the output as they are.
        num_rows: how many they are.
        first_row: number of the first one in the input file.
        faults: row of the batch -> why it cannot be used.
        usable: [n] int64, the other rows.
        records: these, decoded.
        profile: counts of their fields' measures; none without a profile to count by.
        bytes_read: of the input, decompressed.
        seconds: wall time by stage, ``read`` and ``decode``.
        cpu_s: CPU-seconds of another process than the worker's.
    """

    copied: pa.Table
    num_rows: int
    first_row: int
    faults: dict[int, RowError]
    usable: NDArray[np.int64]
    records: Records
    profile: ProfileCounts
    bytes_read: int
    seconds: dict[str, float]
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Decoder:
    """Reads and decodes units of a run; thread-safe.

    Attributes:
        job: the run.
        specs: the fields of its bundle.
        profile: of the bundle's training data, if it has one.
        threads: of this process that decode; media are fetched by some more.
    """

    job: Job
    specs: tuple[FieldSpec, ...]
    profile: Profile | None
    threads: int = 1

    @staticmethod
    def of(job: Job, bundle: Bundle, threads: int = 1) -> Decoder:
        """The decoder of a run's bundle."""
        return Decoder(job, bundle.specs, bundle.profile, threads)

    def read(self, unit: Unit, batch_rows: int) -> Iterator[RowBatch]:
        """The rows to score in order, at most ``batch_rows`` at a time.

        Raises:
            DataError: the unit's file is damaged or was replaced.
        """
        batches = _numbered(read_unit(unit, self.job.columns, batch_rows), unit.start)
        again = self.job.retried.get(unit.number)
        if again is None:
            return batches
        payload = storage.read_bytes(storage.join(self.job.output, again))
        wanted = pq.read_table(pa.BufferReader(payload), columns=["row"])["row"].to_numpy()
        return _only(batches, set(wanted.tolist()))

    def decode(self, unit: Unit, batch: RowBatch) -> DecodedBatch:
        """Fetch and decode some rows of a unit."""
        began_s = time.perf_counter()
        rows, job = batch.rows, self.job
        faults: dict[int, RowError] = {}
        note_faults(faults, _nulls(rows, job.settings.id_column, "id_missing", "the record has no id"))
        note_faults(faults, _nulls(rows, job.label_column, "label_missing", "the record has no label"))
        base = job.settings.media_root or posixpath.dirname(unit.path)
        fetched = fetch_media(self._values(rows), self.specs, base, self.threads * _FETCHES_PER_THREAD)
        note_faults(faults, fetched[1])
        decoded = decode_table(fetched[0], self.specs, None)
        note_faults(faults, decoded.errors)
        usable = _other_rows(rows.num_rows, faults)
        fields, present = decoded.fields, decoded.present
        if len(usable) < len(present):
            fields = {f: {name: a[usable] for name, a in arrays.items()} for f, arrays in fields.items()}
            present = present[usable]
        return DecodedBatch(
            copied=rows.select(job.copied),
            num_rows=rows.num_rows,
            first_row=batch.first_row,
            faults=faults,
            usable=usable,
            records=records_of(fields, present),
            profile=self._profile(fields, present),
            bytes_read=rows.nbytes,
            seconds={"read": batch.read_s, "decode": time.perf_counter() - began_s},
        )

    def _values(self, rows: pa.Table) -> pa.Table:
        """The columns under the names by which the bundle's fields know them."""
        pairs = [
            (name, rows.column(source))
            for spec, columns in zip(self.specs, self.job.fields, strict=True)
            for name, source in zip(spec.columns, columns, strict=True)
        ]
        return pa.table({name: plain(column) for name, column in pairs})

    def _profile(self, fields: dict[str, Arrays], present: NDArray[np.bool_]) -> ProfileCounts:
        if self.profile is None:
            return ProfileCounts()
        return count(self.profile, self.specs, fields, present)


def records_of(fields: dict[str, Arrays], present: NDArray[np.bool_]) -> Records:
    """Decoded values as records without labels; ``present`` is [n, M]."""
    rows = len(present)
    return Records(
        fields=fields,
        present=present,
        labels=np.full(rows, -1, dtype=np.int64),
        weights=np.ones(rows, dtype=np.float32),
        keys=np.zeros(rows, dtype=np.uint64),
        ids=np.arange(rows, dtype=np.int64),
    )


def note_faults(faults: dict[int, RowError], found: Sequence[RowError]) -> None:
    """Add faults to those of rows that have none yet."""
    for error in found:
        faults.setdefault(error.row, error)


def _numbered(tables: Iterator[pa.Table], row: int) -> Iterator[RowBatch]:
    while True:
        began_s = time.perf_counter()
        table = next(tables, None)
        if table is None:
            return
        yield RowBatch(table, row, time.perf_counter() - began_s)
        row += table.num_rows


def _only(batches: Iterable[RowBatch], wanted: set[int]) -> Iterator[RowBatch]:
    """Only the wanted rows, each run of neighbours as a batch."""
    for table, first_row, read_s in batches:
        rows = [row for row in range(first_row, first_row + table.num_rows) if row in wanted]
        start = 0
        for index in range(1, len(rows) + 1):
            if index == len(rows) or rows[index] != rows[index - 1] + 1:
                yield RowBatch(table.slice(rows[start] - first_row, index - start), rows[start], read_s)
                start, read_s = index, 0.0


def _nulls(rows: pa.Table, column: str | None, reason: str, message: str) -> list[RowError]:
    if column is None:
        return []
    nulls = np.flatnonzero(pc.is_null(rows.column(column)).to_numpy(zero_copy_only=False))
    return [RowError(row, column, DecodeError(reason, message)) for row in nulls.tolist()]


def _other_rows(count: int, faults: dict[int, RowError]) -> NDArray[np.int64]:
    return np.setdiff1d(
        np.arange(count, dtype=np.int64), np.fromiter(faults, dtype=np.int64, count=len(faults))
    )
