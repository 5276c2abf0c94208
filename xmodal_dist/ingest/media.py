"""Gets the bytes of media values: files and URIs are fetched, byte columns read back from a temporary file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from xmodal_dist import storage
from xmodal_dist.errors import DecodeError, UsageError
from xmodal_dist.ingest.source import Source
from xmodal_dist.ingest.table import iterate_bytes

__all__ = ["ByteSpool", "fetch"]


def fetch(folder: str, value: str) -> bytes:
    """The bytes of a path (relative to ``folder``), URI or ``data:`` URI.

    Raises:
        DecodeError: it is not there, not permitted, or cannot be read.
    """
    try:
        fs, inner = storage.filesystem(value if value.startswith("data:") else storage.join(folder, value))
        return bytes(fs.cat_file(inner))
    except FileNotFoundError as error:
        raise DecodeError("uri_not_found", f"{value[:300]!r} does not exist") from error
    except PermissionError as error:
        raise DecodeError(
            "uri_access_denied", f"{value[:300]!r} must not be read: {error.strerror}"
        ) from error
    except UsageError as error:
        raise DecodeError("fetch_failed", str(error)) from error
    except Exception as error:  # every store has errors of its own
        reason = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else f"{type(error).__name__}: {error}"
        )
        raise DecodeError("fetch_failed", f"{value[:300]!r} cannot be read: {reason}") from error


class ByteSpool:
    """The byte columns of a source, copied once, in order, to a temporary file and read back in any order.

    A shuffled order would read every row group of the source once a record; this needs temporary disk space for the
    bytes instead (``TMPDIR`` says where), and memory for their places only. Thread-safe to read.

    Args:
        source: a source with byte columns.
        columns: those to copy.
    """

    def __init__(self, source: Source, columns: Sequence[str]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        try:
            self._places = self._copy(source, columns)
        except BaseException:
            self._file.close()
            raise

    def _copy(
        self, source: Source, columns: Sequence[str]
    ) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Begin, or -1 where null, and end of every value in the file."""
        starts: dict[str, list[int]] = {column: [] for column in columns}
        ends: dict[str, list[int]] = {column: [] for column in columns}
        for batch in iterate_bytes(source, columns) if columns else ():
            for column, array in batch.items():
                for value in array:
                    payload = value.as_py()
                    starts[column].append(-1 if payload is None else self._file.tell())
                    self._file.write(payload or b"")
                    ends[column].append(self._file.tell())
        self._file.flush()
        return {
            column: (np.array(starts[column], dtype=np.int64), np.array(ends[column], dtype=np.int64))
            for column in columns
        }

    def get(self, column: str, row: int) -> bytes | None:
        """The value of a record, None where it is null."""
        starts, ends = self._places[column]
        start = int(starts[row])
        return None if start < 0 else os.pread(self._file.fileno(), int(ends[row]) - start, start)

    def __enter__(self) -> ByteSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
