"""Storage on real S3 servers: exclusive creation, and faults that pass."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.faulty_proxy import FaultyProxy
from tests.s3_servers import moto_server, seaweed_server, use_s3
from xmodal_dist import storage

pytest.importorskip("s3fs", reason="s3fs is not installed")


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweed_server(tmp_path_factory.mktemp("weed")) as url:
        yield url


@pytest.fixture(scope="module", params=["moto", pytest.param("seaweed", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "seaweed":
        yield request.getfixturevalue("seaweed")
        return
    with moto_server() as url:
        yield url


def test_a_file_is_created_once_and_never_replaced(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with use_s3(server, monkeypatch) as root:
        path = storage.join(root, "a", "one")
        assert storage.exclusive_create_works(storage.join(root, "a"))
        assert storage.create(path, b"1") and not storage.create(path, b"2")
        assert storage.create(path, b"1"), "what is there already is what was to be created"
        assert storage.read_bytes(path) == b"1" and storage.size_of(path) == 1
        assert storage.list_files(storage.join(root, "a")) == [path]
        storage.delete(path)
        storage.delete(path)
        assert not storage.exists(path)


@pytest.mark.slow
def test_a_large_file_is_created_in_one_request(seaweed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = os.urandom(101 << 20)
    with use_s3(seaweed, monkeypatch) as root:
        path = storage.join(root, "large")
        assert storage.create(path, payload) and not storage.create(path, payload[:-1] + b"?")
        assert storage.sha256_of(path) == hashlib.sha256(payload).hexdigest()
        storage.delete(path)


@pytest.mark.slow
def test_refused_requests_and_lost_replies_are_overcome(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        FaultyProxy(server, share_503=0.05, share_lost=0.2, seed=1) as proxy,
        use_s3(proxy.url, monkeypatch) as root,
    ):
        for number in range(12):
            path = storage.join(root, "faults", str(number))
            mine, other = f"mine {number}".encode(), b"another's"
            assert storage.create(path, mine), "a lost reply does not make one's own file another's"
            assert not storage.create(path, other)
            assert storage.read_bytes(path) == mine
        assert len(storage.list_files(storage.join(root, "faults"))) == 12
        assert proxy.refused > 1 and proxy.lost > 3


def test_one_of_many_creates_a_file(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with use_s3(server, monkeypatch) as root, ThreadPoolExecutor(8) as pool:
        for number in range(10):
            path = storage.join(root, "race", str(number))
            won = list(pool.map(lambda who, path=path: storage.create(path, f"{who}".encode()), range(8)))
            assert won.count(True) == 1
            assert storage.read_bytes(path) == str(won.index(True)).encode()


class _LooksFirst(MemoryFileSystem):
    """A store without conditional writes, behind a library that asks whether the file exists before it writes."""

    protocol = "looksfirst"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> Any:
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        time.sleep(0.01)
        return super().pipe_file(path, value)


def test_the_probe_sees_stores_that_look_first_and_then_write(tmp_path: Path) -> None:
    fsspec.register_implementation("looksfirst", _LooksFirst, clobber=True)
    assert storage.exclusive_create_works(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert not storage.exclusive_create_works("looksfirst://probe")
