"""The plan of a scoring run: every row of every input file in exactly one unit.

It is kept as columns, so that a million units are some tens of megabytes.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

__all__ = ["Plan", "Unit"]


class Unit(NamedTuple):
    """Rows [start, stop) of one file: its row groups [group_start, group_stop).

    ``pin`` is the file's size and entity tag or modification time when it was planned.
    """

    number: int
    path: str
    pin: str
    group_start: int
    group_stop: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Rows of the unit."""
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """The units of a run in input order; unit ``i`` is element ``i`` of every array.

    Attributes:
        paths: the input files, in order.
        pins: of each file.
        file: [U] index of each unit's file.
        groups: [U, 2] row groups of each unit, from and to.
        rows: [U, 2] rows of each unit within its file, from and to.
    """

    paths: tuple[str, ...]
    pins: tuple[str, ...]
    file: NDArray[np.int32]
    groups: NDArray[np.int32]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of units."""
        return len(self.file)

    def __iter__(self) -> Iterator[Unit]:
        """Units in input order."""
        return map(self.unit, range(len(self)))

    def unit(self, number: int) -> Unit:
        """One unit."""
        file = int(self.file[number])
        return Unit(
            number,
            self.paths[file],
            self.pins[file],
            *self.groups[number].tolist(),
            *self.rows[number].tolist(),
        )

    @functools.cached_property
    def unit_rows(self) -> NDArray[np.int64]:
        """[U] rows of each unit."""
        return self.rows[:, 1] - self.rows[:, 0]

    @property
    def num_rows(self) -> int:
        """Rows of all units."""
        return int(self.unit_rows.sum())

    @functools.cached_property
    def digest(self) -> str:
        """Hex SHA-256: equal for the same files with the same content, cut into the same units."""
        digest = hashlib.sha256()
        for path, pin in zip(self.paths, self.pins, strict=True):
            digest.update(f"{path}\t{pin}\n".encode())
        for array in (self.file, self.groups, self.rows):
            digest.update(np.ascontiguousarray(array).astype("<i8").tobytes())
        return digest.hexdigest()

    def to_parquet(self) -> bytes:
        """The units as one Parquet file, a row each."""
        indices = pa.array(self.file, pa.int32())
        columns = {
            "path": pa.DictionaryArray.from_arrays(indices, pa.array(self.paths, pa.string())),
            "pin": pa.DictionaryArray.from_arrays(indices, pa.array(self.pins, pa.string())),
            "group_start": self.groups[:, 0],
            "group_stop": self.groups[:, 1],
            "start": self.rows[:, 0],
            "stop": self.rows[:, 1],
        }
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink, compression="zstd")
        return sink.getvalue()

    @staticmethod
    def from_parquet(payload: bytes) -> Plan:
        """What :meth:`to_parquet` wrote, without the files that have no unit."""
        table = pq.read_table(io.BytesIO(payload), read_dictionary=["path", "pin"])
        paths, pins = (table.column(name).combine_chunks() for name in ("path", "pin"))
        if isinstance(paths, pa.ChunkedArray):
            paths, pins = paths.unify_dictionaries().chunk(0), pins.unify_dictionaries().chunk(0)
        file = paths.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        pin_of_file = np.zeros(len(paths.dictionary), dtype=np.int64)
        pin_of_file[file] = pins.indices.to_numpy(zero_copy_only=False)
        names = pins.dictionary.to_pylist()

        def pair(first: str, second: str) -> NDArray[np.int64]:
            return np.stack([table.column(first).to_numpy(), table.column(second).to_numpy()], axis=1)

        return Plan(
            paths=tuple(paths.dictionary.to_pylist()),
            pins=tuple(names[i] for i in pin_of_file),
            file=file,
            groups=pair("group_start", "group_stop").astype(np.int32),
            rows=pair("start", "stop"),
        )
