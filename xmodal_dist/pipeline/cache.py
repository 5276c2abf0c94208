"""Decoded row groups on this node's disk: memory-mapped Arrow files that epochs, workers and tuning trials share.

An entry is named by the digest of everything it depends on, so a changed setting or shard never meets it. It is written
under a lock, beside its place, and renamed: readers see it whole or not at all, and of several that want the same one,
one decodes. The size is bounded: a full cache removes what nobody has used since this process began, and then takes
nothing more (least-recently-used eviction would lose every entry just before an epoch comes back to it).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import ipc

from xmodal_dist.errors import UsageError
from xmodal_dist.version import __version__

__all__ = ["Found", "UnitCache"]

_FORMAT = 1
_STALE_TEMPORARY_S = 3600
_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """A table, and whether it was there already."""

    table: pa.Table
    hit: bool


class UnitCache:
    """A directory of entries.

    Args:
        directory: a local directory; made if it is not there.
        max_bytes: of all entries together; several processes that write at once may exceed it by an entry each.
    """

    def __init__(self, directory: str | os.PathLike[str], max_bytes: int) -> None:
        self._directory, self._max_bytes = Path(directory), max_bytes
        self._began_s = time.time()

    def get_or_add(self, key: Sequence[object], make: Callable[[], pa.Table]) -> Found:
        """The entry of a key, made and stored if it is not there; not stored where there is no room.

        Args:
            key: JSON-able; all that the table depends on.
            make: gives the table.

        Raises:
            UsageError: the directory cannot be made.
        """
        text = json.dumps([_FORMAT, __version__, *key], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()
        path = self._directory / digest[:2] / f"{digest}.arrow"
        table = _open(path)
        if table is not None:
            return Found(table, True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"pipeline.cache_dir={str(self._directory)!r} cannot be made: {error}"
            ) from error
        with _locked(path.parent / "lock"):
            table = _open(path)
            if table is not None:
                return Found(table, True)
            table = make()
            return Found(self._store(path, table), False)

    def _store(self, path: Path, table: pa.Table) -> pa.Table:
        """Write an entry and return it as mapped from disk; without room the table itself."""
        if not self._make_room(table.nbytes):
            return table
        temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            with pa.OSFile(str(temporary), "wb") as sink, ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            _log.warning("the cache of decoded data in %s cannot be written: %s", self._directory, error)
            return table
        stored = _open(path)
        return table if stored is None else stored

    def _make_room(self, size: int) -> bool:
        """Whether ``size`` more bytes fit, after removing what was not used since this process began."""
        now_s = time.time()
        entries: list[tuple[float, int, Path]] = []
        for found in self._directory.glob("*/*"):
            try:
                status = found.stat()
            except FileNotFoundError:
                continue  # another process removed it
            if found.suffix == ".tmp" and now_s - status.st_mtime > _STALE_TEMPORARY_S:
                found.unlink(missing_ok=True)
            elif found.suffix == ".arrow":
                entries.append((status.st_mtime, status.st_size, found))
        excess = sum(e[1] for e in entries) + size - self._max_bytes
        for used_s, entry_bytes, found in sorted(entries):
            if excess <= 0 or used_s >= self._began_s:
                break
            # A reader that has it mapped keeps its pages.
            found.unlink(missing_ok=True)
            excess -= entry_bytes
        return excess <= 0


def _open(path: Path) -> pa.Table | None:
    """An entry as views of its file, marked as used; None where there is none. One that is damaged is removed."""
    if not path.is_file():
        return None
    try:
        table = ipc.open_file(pa.memory_map(str(path))).read_all()
        os.utime(path)
    except (pa.ArrowException, OSError):
        path.unlink(missing_ok=True)
        return None
    return table


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock among the processes of this node; it ends with the process that holds it."""
    with open(path, "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
