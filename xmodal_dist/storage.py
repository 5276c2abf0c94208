"""Files by path or URI, on whatever fsspec reaches; the one place that knows how a write becomes visible.

A file is visible whole or not at all: it is written beside its place and renamed on a local disk, and is one PUT on an
object store. ``create`` never replaces a file that exists.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import uuid
from typing import IO, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from xmodal_dist.errors import StorageError, UsageError

__all__ = [
    "absolute",
    "create",
    "delete",
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


def exists(path: str) -> bool:
    """True if a file or directory is there."""
    fs, inner = filesystem(path)
    return bool(fs.exists(inner))


def size_of(path: str) -> int:
    """Size in bytes."""
    fs, inner = filesystem(path)
    return int(fs.size(inner))


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


def read_bytes(path: str) -> bytes:
    """The whole file."""
    with open_read(path) as handle:
        return handle.read()


def read_text(path: str) -> str:
    """The whole file as UTF-8."""
    return read_bytes(path).decode("utf-8")


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
        raise StorageError(f"cannot write {path!r}: {error}") from error


def create(path: str, payload: bytes) -> bool:
    """Create a whole file exclusively: True if this call created it, False if it existed already.

    Locally by hard link (atomic also on NFS); elsewhere by the store's conditional write.
    """
    fs, inner = filesystem(path)
    try:
        fs.makedirs(posixpath.dirname(inner), exist_ok=True)
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(inner, payload, mode="create")
            return True
        temporary = _write_beside(inner, payload)
        try:
            os.link(temporary, inner)
        finally:
            os.unlink(temporary)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(f"cannot create {path!r}: {error}") from error


def delete(path: str) -> None:
    """Remove a file; one that is not there is gone already."""
    fs, inner = filesystem(path)
    try:
        fs.rm_file(inner)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot remove {path!r}: {error}") from error


def sha256_of(path: str) -> str:
    """Hex SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open_read(path) as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _write_beside(inner: str, payload: bytes) -> str:
    temporary = f"{inner}.{uuid.uuid4().hex}.tmp"
    with open(temporary, "wb") as handle:
        handle.write(payload)
        handle.flush()
        os.fsync(handle.fileno())
    return temporary
