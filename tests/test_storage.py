from __future__ import annotations

import errno
import os
import resource
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from xmodal_dist import storage
from xmodal_dist.errors import StorageError, UsageError


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory:///{uuid.uuid4().hex}"


def test_written_files_read_back_and_are_listed(root: str) -> None:
    for name in ("b/two.txt", "a/one.txt", "a/one.bin"):
        storage.write_bytes(storage.join(root, name), name.encode())
    assert storage.read_text(storage.join(root, "a/one.txt")) == "a/one.txt"
    found = storage.list_files(root, ".txt")
    assert [storage.read_text(path) for path in found] == ["a/one.txt", "b/two.txt"]
    assert storage.size_of(found[0]) == 9
    assert storage.sha256_of(found[0]) == storage.sha256_of(storage.join(root, "a/one.txt"))


def test_writing_replaces_and_leaves_no_other_files(root: str) -> None:
    path = storage.join(root, "x.json")
    storage.write_bytes(path, b"old")
    storage.write_bytes(path, b"new")
    assert storage.read_bytes(path) == b"new" and len(storage.list_files(root)) == 1


def test_create_never_replaces(tmp_path: Path) -> None:
    path = str(tmp_path / "x" / "part.parquet")
    assert storage.create(path, b"first")
    assert not storage.create(path, b"second")
    assert storage.read_bytes(path) == b"first" and len(storage.list_files(str(tmp_path))) == 1


def test_of_many_creators_exactly_one_wins(tmp_path: Path) -> None:
    path, won = str(tmp_path / "part.parquet"), []
    gate = threading.Barrier(8)

    def create(number: int) -> None:
        gate.wait()
        if storage.create(path, str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and storage.read_text(path) == str(won[0])


def test_a_missing_file_and_an_unknown_scheme_are_the_users_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        storage.read_bytes(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="directory"):
        storage.read_bytes(str(tmp_path))
    with pytest.raises(UsageError, match="nosuchscheme"):
        storage.read_bytes("nosuchscheme://bucket/x")


def test_join_keeps_uris_whole() -> None:
    assert storage.join("s3://b/data", "x", "y.parquet") == "s3://b/data/x/y.parquet"
    assert storage.join("/a", "s3://b/c") == "s3://b/c"
    assert storage.join("/a", "/b") == "/b"


def test_ranges_sizes_and_removal_of_many(root: str) -> None:
    paths = [storage.join(root, "a" if n % 2 else "b/c", f"{n}[1]*.txt") for n in range(20)]
    for number, path in enumerate(paths):
        storage.write_bytes(path, b"x" * number)
    assert storage.list_sizes(root) == {path: n for n, path in sorted(enumerate(paths), key=lambda p: p[1])}
    storage.delete_many(paths[1:])
    storage.delete_many(paths[1:])
    assert storage.list_sizes(root) == {paths[0]: 0}
    assert storage.list_sizes(storage.join(root, "nothing")) == {}


def test_listing_while_files_come_and_go_shows_those_that_stay(tmp_path: Path) -> None:
    stay = [storage.join(str(tmp_path), f"{n:03d}.parquet") for n in range(50)]
    for path in stay:
        storage.write_bytes(path, b"1")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            storage.write_bytes(storage.join(str(tmp_path), "busy.json"), b"{}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            assert set(stay) <= storage.list_sizes(str(tmp_path)).keys()
    finally:
        stop.set()
        writer.join()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as on a full disk
    try:
        for write in (storage.write_bytes, storage.create):
            with pytest.raises(StorageError, match=r"x\.bin"):
                write(str(tmp_path / "x.bin"), bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links_nothing_is_created_and_the_probe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)  # as on exFAT
    with pytest.raises(StorageError, match="no hard links.* choose a folder on another"):
        storage.create(str(tmp_path / "x"), b"1")
    assert not storage.exclusive_create_works(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_over_nfs_a_link_made_by_a_lost_request_is_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def lose_the_reply(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", lose_the_reply)
    assert storage.create(str(tmp_path / "x"), b"1")
    assert not storage.create(str(tmp_path / "x"), b"1")


class _LooksFirst(MemoryFileSystem):
    """A store without conditional writes, behind a library that asks whether the file exists before it writes."""

    protocol = "looksfirst"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        time.sleep(0.01)
        return super().pipe_file(path, value)


class _LooksFirstByDefault(MemoryFileSystem):
    """The same as fsspec does it for whoever does not do it better; too quick here to be caught in a race."""

    protocol = "looksfirstbydefault"
    pipe_file = AbstractFileSystem.pipe_file


class _Overwrites(MemoryFileSystem):
    """A store that takes the condition and does not mind it, as libraries of before conditional writes do."""

    protocol = "overwrites"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        return super().pipe_file(path, value)


class _Refuses(MemoryFileSystem):
    """A store whose library says that it cannot."""

    protocol = "refuses"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        if mode == "create":
            raise NotImplementedError("no exclusive writes")
        return super().pipe_file(path, value)


@pytest.mark.parametrize("kind", [_LooksFirst, _LooksFirstByDefault, _Overwrites, _Refuses])
def test_the_probe_sees_stores_that_do_not_create_exclusively(kind: type[MemoryFileSystem]) -> None:
    fsspec.register_implementation(str(kind.protocol), kind, clobber=True)
    folder = f"{kind.protocol}://{uuid.uuid4().hex}"
    assert not storage.exclusive_create_works(folder)
    assert storage.list_files(folder) == []


def test_the_probe_trusts_stores_that_do_and_leaves_nothing(root: str) -> None:
    assert storage.exclusive_create_works(root)
    assert storage.list_files(root) == []


def test_the_probe_does_not_take_a_folder_that_cannot_be_written_for_a_store_that_cannot(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot create"):
        storage.exclusive_create_works(str(tmp_path / "file"))
