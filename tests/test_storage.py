from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest

from xmodal_dist import storage
from xmodal_dist.errors import UsageError


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


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
    with pytest.raises(UsageError, match="nosuchscheme"):
        storage.read_bytes("nosuchscheme://bucket/x")


def test_join_keeps_uris_whole() -> None:
    assert storage.join("s3://b/data", "x", "y.parquet") == "s3://b/data/x/y.parquet"
    assert storage.join("/a", "s3://b/c") == "s3://b/c"
    assert storage.join("/a", "/b") == "/b"
