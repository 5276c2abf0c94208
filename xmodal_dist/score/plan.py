"""The plan of a scoring run: every row of every input file in exactly one unit.

It is kept as columns, so that a million units are some tens of megabytes.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

__all__ = ["Plan", "Unit", "group_sizes"]

_MAX_GROUP_UNITS = 64
_ROUNDS = 4


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
        pins: of each file, as ``BYTES/TAG``.
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

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(int(pin.partition("/")[0]) for pin in self.pins)

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
        """One Parquet file: a row for each unit, and one without rows for each file that has no unit."""
        empty = np.setdiff1d(np.arange(len(self.paths), dtype=np.int32), self.file)
        indices = pa.array(np.concatenate([self.file, empty]), pa.int32())
        nothing = np.zeros((len(empty), 2), dtype=np.int64)
        groups, rows = (np.concatenate([array, nothing]) for array in (self.groups, self.rows))
        columns = {
            "file": indices,
            "path": pa.DictionaryArray.from_arrays(indices, pa.array(self.paths, pa.string())),
            "pin": pa.DictionaryArray.from_arrays(indices, pa.array(self.pins, pa.string())),
            "group_start": groups[:, 0],
            "group_stop": groups[:, 1],
            "start": rows[:, 0],
            "stop": rows[:, 1],
        }
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink, compression="zstd")
        return sink.getvalue()

    @staticmethod
    def from_parquet(payload: bytes) -> Plan:
        """What :meth:`to_parquet` wrote."""
        table = pq.read_table(io.BytesIO(payload))
        file = table.column("file").to_numpy()
        first = np.unique(file, return_index=True)[1]
        paths, pins = (table.column(name).take(pa.array(first)).to_pylist() for name in ("path", "pin"))
        groups, rows = (
            np.stack([table.column(a).to_numpy(), table.column(b).to_numpy()], axis=1)
            for a, b in (("group_start", "group_stop"), ("start", "stop"))
        )
        units = rows[:, 1] > rows[:, 0]
        return Plan(tuple(paths), tuple(pins), file[units], groups[units].astype(np.int32), rows[units])


def group_sizes(num_units: int, num_lanes: int) -> list[int]:
    """Sizes of the groups in which units are handed out, in order: large at first, single ones at the end.

    Guided self-scheduling (Polychronopoulos and Kuck 1987): each group is a share of what is left, so that the lanes
    of all workers finish together though units differ.
    """
    sizes = []
    while num_units:
        size = min(_MAX_GROUP_UNITS, math.ceil(num_units / (_ROUNDS * num_lanes)))
        sizes.append(size)
        num_units -= size
    return sizes
