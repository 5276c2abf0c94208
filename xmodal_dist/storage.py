"""Files by path or URI, on whatever fsspec reaches; the one place that knows how a write becomes visible.

A file is visible whole or not at all: it is written beside its place and renamed on a local disk, and is one PUT on an
object store. ``create`` never replaces a file that exists. What fails for a moment on a remote store is tried again for
two minutes. Listings are never remembered: other writers are at work.

Everything that fails says which path it was: UsageError for what does not exist, else StorageError.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import inspect
import os
import posixpath
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from xmodal_dist.errors import StorageError, UsageError
from xmodal_dist.retries import http_status, is_unsupported, patient

__all__ = [
    "absolute",
    "create",
    "delete",
    "delete_many",
    "exclusive_create_works",
    "exists",
    "filesystem",
    "is_local",
    "join",
    "list_files",
    "list_sizes",
    "open_read",
    "read_bytes",
    "read_text",
    "sha256_of",
    "size_of",
    "write_bytes",
]

_PRECONDITION_FAILED = 412
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_SINGLE_PUT_BYTES = 5 << 30
_COMPARED_BYTES = 16 << 20
_PROBE_ROUNDS, _PROBE_THREADS = 3, 8
_DELETERS = 16


def filesystem(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URI and the path within it.

    Raises:
        UsageError: the URI's scheme needs a package that is not installed, or does not exist.
    """
    try:
        # Remembered listings would hide what other writers did since.
        fs, inner = fsspec.core.url_to_fs(
            path, **({"use_listings_cache": False} if "://" in os.fspath(path) else {})
        )
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


@patient("look for")
def exists(path: str) -> bool:
    """True if a file or directory is there."""
    fs, inner = filesystem(path)
    try:
        fs.info(inner)  # fs.exists() of some stores takes any failure for an absence
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@patient("read")
def size_of(path: str) -> int:
    """Size in bytes."""
    fs, inner = filesystem(path)
    return int(fs.size(inner))


@patient("list")
def list_files(path: str, suffix: str = "") -> list[str]:
    """Every file below a directory (or the file itself) that ends in ``suffix``, as full paths or URIs, sorted."""
    fs, inner = filesystem(path)
    if fs.isfile(inner):
        return [path]
    if isinstance(fs, LocalFileSystem):
        # Names alone: fsspec would hold a dictionary for each of perhaps a million files.
        return sorted(place for place in _walk(inner) if place.endswith(suffix))
    return sorted(str(fs.unstrip_protocol(p)) for p in _find(fs, inner) if p.endswith(suffix))


@patient("list")
def list_sizes(folder: str) -> dict[str, int]:
    """Size in bytes of every file below a directory by full path or URI, sorted; empty if it does not exist."""
    fs, inner = filesystem(folder)
    if not isinstance(fs, LocalFileSystem):
        found = {str(fs.unstrip_protocol(p)): size for p, size in _find(fs, inner).items()}
        return dict(sorted(found.items()))
    sizes = {}
    for place in sorted(_walk(inner)):
        with contextlib.suppress(FileNotFoundError):  # a temporary file, renamed or removed since
            sizes[place] = os.stat(place).st_size
    return sizes


def open_read(path: str) -> IO[bytes]:
    """Open for reading; the caller closes it. On a remote store each range that it reads is tried again if it fails."""
    handle = _open(path)
    cache = getattr(handle, "cache", None)
    if cache is not None and hasattr(cache, "fetcher"):
        fetch = cache.fetcher

        @patient("read")
        def fetch_patiently(path: str, start: int, stop: int) -> bytes:
            return cast(bytes, fetch(start, stop))

        cache.fetcher = functools.partial(fetch_patiently, path)
    return handle


@patient("read")
def read_bytes(path: str) -> bytes:
    """The whole file."""
    with open_read(path) as handle:
        return handle.read()


def read_text(path: str) -> str:
    """The whole file as UTF-8."""
    return read_bytes(path).decode("utf-8")


@patient("write")
def write_bytes(path: str, payload: bytes) -> None:
    """Write a whole file, replacing one that exists; readers see the old one or the new one."""
    fs, inner = filesystem(path)
    _make_folder(fs, inner)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(inner, payload)
        return
    with _written_beside(inner, payload) as temporary:
        os.replace(temporary, inner)


@patient("create")
def create(path: str, payload: bytes) -> bool:
    """Create a whole file exclusively: True if this call created it, False if another did before.

    Locally by hard link (atomic also on NFS); elsewhere by the store's conditional write, in one request up to 5 GiB.
    A store that says the file exists, and holds just this payload, has lost its reply to an earlier try of this call:
    so payloads of writers that must tell who was first have to differ, for example by an id of the attempt.

    Raises:
        StorageError: the store failed for too long, or cannot create exclusively.
    """
    fs, inner = filesystem(path)
    _make_folder(fs, inner)
    if isinstance(fs, LocalFileSystem):
        return _link(inner, payload)
    # s3fs would upload in parts what is larger than twice its chunks, and a lost reply to their completion is no more
    # to be told from a failure.
    takes_chunks = "chunksize" in inspect.signature(getattr(fs, "_pipe_file", fs.pipe_file)).parameters
    single = {"chunksize": _SINGLE_PUT_BYTES} if takes_chunks else {}
    try:
        fs.pipe_file(inner, payload, mode="create", **single)
    except (TypeError, ValueError) as error:
        raise NotImplementedError(f"the library of this store cannot create exclusively: {error}") from error
    except Exception as error:
        # s3fs knows the wording of some servers only; all answer with this status.
        if not isinstance(error, FileExistsError) and http_status(error) != _PRECONDITION_FAILED:
            raise
    else:
        return True
    return _holds(fs, inner, payload)


def exclusive_create_works(folder: str) -> bool:
    """Whether a store lets only one of many create a file, found by trying it: some look first, and then write.

    Raises:
        StorageError: nothing can be written there at all.
        UsageError: its bucket does not exist.
    """
    fs, _ = filesystem(folder)
    if not isinstance(fs, LocalFileSystem) and not fs.async_impl and _looks_first(fs):
        return False
    for _ in range(_PROBE_ROUNDS):
        probe = join(folder, f"_probe-{uuid.uuid4().hex}")
        barrier = threading.Barrier(_PROBE_THREADS)
        try:
            with ThreadPoolExecutor(_PROBE_THREADS) as pool:
                won = list(pool.map(functools.partial(_try_to_create, probe, barrier), range(_PROBE_THREADS)))
            if won.count(True) != 1 or read_bytes(probe) != str(won.index(True)).encode():
                return False
        finally:
            with contextlib.suppress(StorageError):  # where nothing can be written, that is the error to tell
                delete(probe)
    return True


@patient("remove")
def delete(path: str) -> None:
    """Remove a file; one that is not there is gone already."""
    fs, inner = filesystem(path)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        fs.rm_file(inner)


def delete_many(paths: Sequence[str]) -> None:
    """Remove files, several at a time; those that are not there are gone already."""
    with ThreadPoolExecutor(_DELETERS) as pool:
        for _ in pool.map(delete, paths):
            pass


@patient("read")
def sha256_of(path: str) -> str:
    """Hex SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open_read(path) as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _walk(inner: str) -> Iterator[str]:
    """Files below a local directory; a folder that cannot be read is an error, not an empty one."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, _, names in os.walk(inner, onerror=refuse, followlinks=True):
        yield from (os.path.join(folder, name) for name in names)


def _find(fs: AbstractFileSystem, inner: str) -> dict[str, int]:
    """Sizes of the files below a remote directory by path within the store."""
    # The general listing of fsspec leaves out folders that it fails to read, unless told not to.
    strict = {} if fs.async_impl else {"on_error": "raise"}
    try:
        found = fs.find(inner, detail=True, **strict)
    except FileNotFoundError:
        return {}
    files = {str(path): info for path, info in found.items() if info.get("type") != "directory"}
    return {path: int(info["size"]) for path, info in files.items() if not path.endswith("/")}


@patient("read")
def _open(path: str) -> IO[bytes]:
    fs, inner = filesystem(path)
    return cast("IO[bytes]", fs.open(inner, "rb"))


def _make_folder(fs: AbstractFileSystem, inner: str) -> None:
    # Object stores, all asynchronous in fsspec, have no folders: it would ask for the bucket, and make one that a
    # misspelt path names.
    if not fs.async_impl:
        fs.makedirs(posixpath.dirname(inner), exist_ok=True)


def _looks_first(fs: AbstractFileSystem) -> bool:
    """Whether creation is fsspec's general one, which asks whether the file exists and then writes."""
    return getattr(type(fs), "pipe_file", None) is AbstractFileSystem.pipe_file


def _try_to_create(path: str, barrier: threading.Barrier, who: int) -> bool:
    barrier.wait()
    try:
        return create(path, str(who).encode())
    except StorageError as error:
        if error.__cause__ is not None and is_unsupported(error.__cause__):
            return False
        raise


def _holds(fs: AbstractFileSystem, inner: str, payload: bytes) -> bool:
    """Whether a file that is said to exist has this content; read from its end, where Parquet keeps whose it is."""
    try:
        if int(fs.size(inner)) != len(payload):
            return False
        for stop in range(len(payload), 0, -_COMPARED_BYTES):
            start = max(0, stop - _COMPARED_BYTES)
            if fs.cat_file(inner, start=start, end=stop) != payload[start:stop]:
                return False
    except FileNotFoundError as error:
        raise BlockingIOError(errno.EAGAIN, "the file was there, and is not any more") from error
    return True


def _link(inner: str, payload: bytes) -> bool:
    with _written_beside(inner, payload) as temporary:
        try:
            os.link(temporary, inner)
        except FileExistsError:
            # Over NFS a request that was sent twice meets the link that its first sending made.
            return os.path.samefile(temporary, inner)
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise NotImplementedError(
                    "its file system has no hard links, by which files are created once; choose a folder on another"
                ) from error
            raise
    return True


@contextlib.contextmanager
def _written_beside(inner: str, payload: bytes) -> Iterator[str]:
    """A temporary file in the same folder, on the disk when the block begins, and gone after it whatever happens."""
    temporary = f"{inner}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as handle:
            handle.write(payload)
            handle.flush()
            os.fsync(handle.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    # The new name lies in the folder: until that is on the disk too, a power cut takes the file back.
    folder = os.open(posixpath.dirname(inner), os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks know no fsync of folders
            raise
    finally:
        os.close(folder)
