"""Fetches media that a table names by path or URI, so that decoding always sees bytes.

Requests run in threads, a bounded number of bytes at a time. What may pass by itself (a time-out, a lost connection, a
store that asks for less) is tried again after a random wait that doubles each time (Brooker 2015, "Exponential Backoff
And Jitter"); what will not is an error of its row at once.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import pyarrow as pa
import tenacity
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from xmodal_dist import storage
from xmodal_dist.errors import DecodeError, UsageError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.ahead import map_ahead
from xmodal_dist.pipeline.decode import RowError
from xmodal_dist.pipeline.rows import holds_text

__all__ = ["FetchLimits", "fetch_media"]

_SHOWN_CHARS = 300
_MAX_WAIT_S = 30.0
_PIECE_BYTES = 2 * 2**20
"""Asked for in one request; most media fit, and larger ones come in several."""
_RETRIED_STATUS, _FORBIDDEN_STATUS, _NOTHING_IN_RANGE = (408, 425, 429), (401, 403), 416
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_TIMEOUTS = (TimeoutError, asyncio.TimeoutError)
"""One class from Python 3.11 on."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class FetchLimits:
    """What fetching may cost.

    Attributes:
        attempts: how often a request is tried in all.
        first_wait_s: longest wait before the second try; each further one may take twice as long, up to 30 s.
        timeout_s: of one request; local and other stores without asynchronous requests have none.
        max_bytes: of one value; a field's own ``max_bytes`` holds if it is less. A larger value is not fetched whole,
            unless a server ignores which range of bytes it is asked for.
        max_bytes_in_flight: fetched or asked for and not yet in the table; at least one request runs, and a value
            larger than 2 MiB comes on top while it is put together.
    """

    attempts: int = 5
    first_wait_s: float = 0.5
    timeout_s: float = 60.0
    max_bytes: int = 256 * 2**20
    max_bytes_in_flight: int = 256 * 2**20


def fetch_media(
    table: pa.Table, specs: Sequence[FieldSpec], base: str, threads: int, limits: FetchLimits | None = None
) -> tuple[pa.Table, list[RowError]]:
    """Replace every media column of strings by the bytes they name; other columns stay as they are.

    Args:
        table: n records with the columns of ``specs``.
        specs: the fields.
        base: folder or URI where relative paths start.
        threads: requests in flight at once.
        limits: of time, tries and memory; None takes the defaults.

    Returns:
        The table, null where a value was null or could not be fetched, and an error for each of the latter.
    """
    limits = limits or FetchLimits()
    errors: list[RowError] = []
    for spec in specs:
        name = spec.columns[0]
        if not spec.modality.is_media or not holds_text(table.schema.field(name).type):
            continue
        max_bytes = min(limits.max_bytes, getattr(spec.settings, "max_bytes", limits.max_bytes))
        fetcher = _Fetcher(base, threads, limits, max_bytes)
        chunks: list[pa.Array] = []
        waiting: list[bytes | None] = []
        num_bytes = 0
        for row, fetched in enumerate(fetcher.fetch(table.column(name).to_pylist())):
            if isinstance(fetched, DecodeError):
                errors.append(RowError(row, spec.name, fetched))
                fetched = None
            waiting.append(fetched)
            num_bytes += len(fetched or b"")
            if num_bytes > limits.max_bytes_in_flight // 2:
                chunks.append(pa.array(waiting, pa.large_binary()))
                waiting, num_bytes = [], 0
        chunks.append(pa.array(waiting, pa.large_binary()))
        payloads = pa.chunked_array(chunks, pa.large_binary())
        table = table.set_column(table.column_names.index(name), name, payloads)
    return table, errors


class _Head(NamedTuple):
    """The first piece of a value that may have more, and where the rest is."""

    fs: AbstractFileSystem
    path: str
    payload: bytes


@dataclass(frozen=True)
class _Fetcher:
    """Fetches values of one column, in order.

    Heads come in threads; the rest of a large value is asked for when it is its turn, so that no request waits for
    memory that another one holds.
    """

    base: str
    threads: int
    limits: FetchLimits
    max_bytes: int

    def fetch(self, values: Sequence[str | None]) -> Iterator[bytes | DecodeError | None]:
        """For each path or URI its bytes, or what is wrong."""
        for value, head in zip(values, self._in_order(self._head, values), strict=True):
            yield self._whole(str(value), head) if isinstance(head, _Head) else head

    def _in_order(self, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """``map`` over the threads, with at most half the bytes in flight asked for or waiting for their turn."""
        most = max(1, self.limits.max_bytes_in_flight // (2 * _PIECE_BYTES))
        return map_ahead(call, items, _pool(self.threads), ahead=most)

    def _head(self, value: str | None) -> _Head | bytes | DecodeError | None:
        if value is None:
            return None
        try:
            place = value if value.startswith("data:") else storage.join(self.base, value)
            fs, path = storage.filesystem(place)
            payload = self._read(fs, path, 0, min(_PIECE_BYTES, self.max_bytes + 1))
        except Exception as error:  # every store has errors of its own
            return self._error(value, error)
        if len(payload) > self.max_bytes:
            return self._too_large(value, None)
        return _Head(fs, path, payload) if len(payload) == _PIECE_BYTES else payload

    def _whole(self, value: str, head: _Head) -> bytes | DecodeError:
        size = self._size(head)
        if size is not None and size > self.max_bytes:
            return self._too_large(value, size)
        stop = self.max_bytes + 1 if size is None else size
        starts = range(_PIECE_BYTES, stop, _PIECE_BYTES)
        try:
            rest = self._in_order(
                lambda at: self._read(head.fs, head.path, at, min(at + _PIECE_BYTES, stop)), starts
            )
            payload = b"".join([head.payload, *rest])
        except Exception as error:  # as above
            return self._error(value, error)
        if len(payload) > self.max_bytes:
            return self._too_large(value, None)
        if size is not None and len(payload) != size:
            return DecodeError("fetch_failed", f"{_shown(value)} changed while it was read")
        return payload

    def _read(self, fs: AbstractFileSystem, path: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``, fewer where the value ends; transient errors are tried again.

        Raises:
            tenacity.RetryError: still failing at the last attempt.
        """
        if isinstance(fs, LocalFileSystem):
            # Not past the end: a buffer of the full length would be made first.
            return bytes(fs.cat_file(path, start, min(stop, os.stat(path).st_size)))
        try:
            return bytes(self._retrying(fs.cat_file, path, start, stop, **self._timeout(fs)))
        except Exception as error:
            if _status(error) == _NOTHING_IN_RANGE:
                return b""
            raise

    def _size(self, head: _Head) -> int | None:
        """The value's size, if the store tells."""
        try:
            size = head.fs.info(head.path, **self._timeout(head.fs)).get("size")
        except Exception:  # it is only a question: reading shows what is wrong
            return None
        return None if size is None else int(size)

    def _timeout(self, fs: AbstractFileSystem) -> dict[str, float]:
        return {"timeout": self.limits.timeout_s} if fs.async_impl else {}

    @functools.cached_property
    def _retrying(self) -> tenacity.Retrying:
        """Keeps what it counts apart for each thread."""
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            stop=tenacity.stop_after_attempt(self.limits.attempts),
            wait=tenacity.wait_random_exponential(multiplier=self.limits.first_wait_s, max=_MAX_WAIT_S),
        )

    def _too_large(self, value: str, size: int | None) -> DecodeError:
        found = f"more than {self.max_bytes}" if size is None else f"{size}"
        message = f"{_shown(value)} has {found} bytes; max_bytes is {self.max_bytes}"
        return DecodeError("media_too_large_bytes", message)

    def _error(self, value: str, error: Exception) -> DecodeError:
        shown, tried = _shown(value), ""
        if isinstance(error, tenacity.RetryError):
            tried = f", tried {error.last_attempt.attempt_number} times"
            error = cast(Exception, error.last_attempt.exception())
        if isinstance(error, UsageError):
            return DecodeError("fetch_failed", str(error))
        if isinstance(error, _ABSENT):
            return DecodeError("uri_not_found", f"{shown} does not exist below {self.base!r}")
        if isinstance(error, PermissionError) or _status(error) in _FORBIDDEN_STATUS:
            return DecodeError("uri_access_denied", f"{shown} must not be read: {error}")
        if isinstance(error, _TIMEOUTS):
            return DecodeError("fetch_failed", f"{shown}: no answer in {self.limits.timeout_s:g} s{tried}")
        return DecodeError("fetch_failed", f"{shown} cannot be read{tried}: {type(error).__name__}: {error}")


def _shown(value: str) -> str:
    return repr(value[:_SHOWN_CHARS])


def _status(error: BaseException) -> int | None:
    """The HTTP status behind a store's error, under the names the stores' libraries have for it."""
    for cause in (error, error.__cause__):
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(cause, name, None), int):
                return status
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return None


def _is_transient(error: BaseException) -> bool:
    """Whether a store's error may pass by itself."""
    if isinstance(error, (*_ABSENT, PermissionError, ValueError)):
        return False
    status = _status(error)
    if status is not None:
        return status in _RETRIED_STATUS or status >= 500
    if isinstance(error, (*_TIMEOUTS, OSError)):
        return True
    import aiohttp  # rarely needed, slow to import

    return isinstance(error, aiohttp.ClientError)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads for as long as the process lives: starting them for every batch costs more than a small batch."""
    return ThreadPoolExecutor(threads, thread_name_prefix="fetch")


# A forked child has the pools, but none of their threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
