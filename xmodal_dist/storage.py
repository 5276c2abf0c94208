"""Files by path or URI, on whatever fsspec reaches; the one place that knows how a write becomes visible.

A file is visible whole or not at all: it is written beside its place and renamed on a local disk, and is one PUT on an
object store. ``create`` never replaces a file that exists. What fails for a moment on a remote store is tried again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, ParamSpec, TypeVar, cast

import fsspec
import tenacity
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from xmodal_dist.errors import StorageError, UsageError

__all__ = [
    "absolute",
    "create",
    "delete",
    "exclusive_create_works",
    "exists",
    "filesystem",
    "is_local",
    "join",
    "list_files",
    "open_read",
    "read_bytes",
    "read_text",
    "sha256_of",
    "size_of",
    "write_bytes",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_TRIES = 6
_MAX_WAIT_S = 10.0
_PRECONDITION_FAILED = 412
_PROBE_ROUNDS, _PROBE_THREADS = 3, 8
_SINGLE_PUT_BYTES = 5 << 30
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


def _is_passing(error: BaseException) -> bool:
    """Whether a fault of a remote store may be gone in a moment; what its libraries raise is of many classes."""
    return isinstance(error, Exception) and not isinstance(error, (*_FINAL, StorageError, UsageError))


def _patient(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Try again, a bounded number of times, what fails on a remote store; the first argument is the path."""
    again = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_passing),
        stop=tenacity.stop_after_attempt(_TRIES),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=_MAX_WAIT_S),
        reraise=True,
    )

    @functools.wraps(function)
    def patient(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        path = str(args[0])
        if is_local(path):
            return function(*args, **kwargs)
        try:
            return again(function, *args, **kwargs)
        except Exception as error:
            if not _is_passing(error):
                raise
            what = function.__name__.strip("_")
            raise StorageError(f"{what} of {path!r} failed {_TRIES} times: {error}") from error

    return patient


def filesystem(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URI and the path within it.

    Raises:
        UsageError: the URI's scheme needs a package that is not installed, or does not exist.
    """
    try:
        fs, inner = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        scheme = path.split("://", 1)[0]
        raise UsageError(
            f"cannot open {path!r}: {error}. Install the extra for it, for example `pip install xmodal-dist[s3]` "
            f"for s3:// (scheme here: {scheme})"
        ) from error
    return cast(AbstractFileSystem, fs), str(inner)


def is_local(path: str) -> bool:
    """True for a path on this machine's file system."""
    return isinstance(filesystem(path)[0], LocalFileSystem)


def absolute(path: str | os.PathLike[str]) -> str:
    """A local path made absolute; a URI unchanged."""
    text = os.fspath(path)
    return os.path.abspath(text) if "://" not in text else text.rstrip("/")


def join(base: str, *parts: str) -> str:
    """Append path components to a path or URI; an absolute component or URI replaces what is before it."""
    for part in parts:
        base = part if "://" in part else posixpath.join(base, part)
    return base


@_patient
def exists(path: str) -> bool:
    """True if a file or directory is there."""
    fs, inner = filesystem(path)
    return bool(fs.exists(inner))


@_patient
def size_of(path: str) -> int:
    """Size in bytes."""
    fs, inner = filesystem(path)
    return int(fs.size(inner))


@_patient
def list_files(path: str, suffix: str = "") -> list[str]:
    """Every file below a directory (or the file itself) that ends in ``suffix``, as full paths or URIs, sorted."""
    fs, inner = filesystem(path)
    if fs.isfile(inner):
        return [path]
    if isinstance(fs, LocalFileSystem):
        # Names alone: fsspec would hold a dictionary for each of perhaps a million files.
        walk = ((folder, name) for folder, _, names in os.walk(inner, followlinks=True) for name in names)
        return sorted(os.path.join(folder, name) for folder, name in walk if name.endswith(suffix))
    return sorted(str(fs.unstrip_protocol(p)) for p in fs.find(inner) if str(p).endswith(suffix))


def open_read(path: str) -> IO[bytes]:
    """Open for reading; the caller closes it."""
    fs, inner = filesystem(path)
    try:
        return cast("IO[bytes]", fs.open(inner, "rb"))
    except FileNotFoundError as error:
        raise UsageError(f"{path!r} does not exist") from error


@_patient
def read_bytes(path: str) -> bytes:
    """The whole file."""
    with open_read(path) as handle:
        return handle.read()


def read_text(path: str) -> str:
    """The whole file as UTF-8."""
    return read_bytes(path).decode("utf-8")


@_patient
def write_bytes(path: str, payload: bytes) -> None:
    """Write a whole file, replacing one that exists; readers see the old one or the new one."""
    fs, inner = filesystem(path)
    try:
        fs.makedirs(posixpath.dirname(inner), exist_ok=True)
        if isinstance(fs, LocalFileSystem):
            temporary = _write_beside(inner, payload)
            os.replace(temporary, inner)
        else:
            fs.pipe_file(inner, payload)
    except OSError as error:
        if not isinstance(fs, LocalFileSystem):
            raise
        raise StorageError(f"cannot write {path!r}: {error}") from error


@_patient
def create(path: str, payload: bytes) -> bool:
    """Create a whole file exclusively: True if this call created it, False if another did before.

    Locally by hard link (atomic also on NFS); elsewhere by the store's conditional write, in one request. A store that
    says the file exists, and holds just this payload, has lost its reply to an earlier try of this call.
    """
    fs, inner = filesystem(path)
    try:
        fs.makedirs(posixpath.dirname(inner), exist_ok=True)
        if isinstance(fs, LocalFileSystem):
            _link(inner, payload)
        else:
            single = {"chunksize": _SINGLE_PUT_BYTES} if fs.protocol in (("s3", "s3a"), "s3") else {}
            fs.pipe_file(inner, payload, mode="create", **single)
        return True
    except OSError as error:
        if isinstance(fs, LocalFileSystem):
            if isinstance(error, FileExistsError):
                return False
            raise StorageError(f"cannot create {path!r}: {error}") from error
        if not _says_it_exists(error):
            raise
        fs.invalidate_cache()
        return bool(fs.cat_file(inner) == payload)


def _says_it_exists(error: OSError) -> bool:
    """Whether a store refused a conditional write; s3fs knows the wording of some servers only."""
    response = getattr(error.__cause__, "response", None) or {}
    return isinstance(error, FileExistsError) or (
        response.get("ResponseMetadata", {}).get("HTTPStatusCode") == _PRECONDITION_FAILED
    )


def exclusive_create_works(folder: str) -> bool:
    """Whether a store lets only one of many create a file, found by trying it: some look first, and then write."""
    for _ in range(_PROBE_ROUNDS):
        probe = join(folder, f"_probe-{uuid.uuid4().hex}")
        barrier = threading.Barrier(_PROBE_THREADS)
        try:
            with ThreadPoolExecutor(_PROBE_THREADS) as pool:
                won = list(pool.map(functools.partial(_try_to_create, probe, barrier), range(_PROBE_THREADS)))
            if won.count(True) != 1 or read_bytes(probe) != str(won.index(True)).encode():
                return False
        finally:
            delete(probe)
    return True


def _try_to_create(path: str, barrier: threading.Barrier, who: int) -> bool:
    barrier.wait()
    try:
        return create(path, str(who).encode())
    except (StorageError, NotImplementedError, TypeError, ValueError):
        return False


@_patient
def delete(path: str) -> None:
    """Remove a file; one that is not there is gone already."""
    fs, inner = filesystem(path)
    try:
        fs.rm_file(inner)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot remove {path!r}: {error}") from error


@_patient
def sha256_of(path: str) -> str:
    """Hex SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open_read(path) as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _link(inner: str, payload: bytes) -> None:
    temporary = _write_beside(inner, payload)
    try:
        os.link(temporary, inner)
    finally:
        os.unlink(temporary)


def _write_beside(inner: str, payload: bytes) -> str:
    temporary = f"{inner}.{uuid.uuid4().hex}.tmp"
    with open(temporary, "wb") as handle:
        handle.write(payload)
        handle.flush()
        os.fsync(handle.fileno())
    return temporary
