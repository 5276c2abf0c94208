"""Storage on real S3 servers: exclusive creation, other writers, and faults that pass."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest

from tests.faulty_proxy import FaultyProxy
from tests.s3_servers import BUCKET, moto_server, seaweed_server, use_s3
from xmodal_dist import storage
from xmodal_dist.errors import UsageError

pytest.importorskip("s3fs", reason="s3fs is not installed")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweed_server(tmp_path_factory.mktemp("weed")) as url:
        yield url


@pytest.fixture(params=["moto", pytest.param("seaweed", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def root(server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of the test's own, without anything between it and the server."""
    with use_s3(server, monkeypatch) as bucket:
        yield storage.join(bucket, request.node.name.replace("[", "-").replace("]", ""))


def test_a_file_is_created_once_and_never_replaced(root: str) -> None:
    path = storage.join(root, "one")
    assert storage.create(path, b"1") and not storage.create(path, b"2")
    assert not storage.create(path, b"22"), "of another size"
    assert storage.create(path, b"1"), "what is there already is what was to be created"
    assert storage.read_bytes(path) == b"1" and storage.size_of(path) == 1
    assert storage.list_files(root) == [path] and storage.list_files(path) == [path]
    storage.delete(path)
    storage.delete(path)
    assert not storage.exists(path)


@pytest.mark.slow
def test_the_probe_trusts_a_store_that_creates_exclusively(
    seaweed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with use_s3(seaweed, monkeypatch) as bucket:
        folder = storage.join(bucket, "probed")
        assert storage.exclusive_create_works(folder)
        assert storage.list_files(folder) == []


def test_ranges_sizes_and_removal_of_many(root: str) -> None:
    paths = [storage.join(root, "a" if n % 2 else "b/c", f"{n}[1]*.txt") for n in range(20)]
    for number, path in enumerate(paths):
        storage.write_bytes(path, b"x" * number)
    assert storage.list_sizes(root) == {path: n for n, path in sorted(enumerate(paths), key=lambda p: p[1])}
    storage.delete_many(paths[1:])
    assert storage.list_sizes(root) == {paths[0]: 0}


def test_what_other_writers_do_is_seen_at_once(root: str, server: str) -> None:
    other = boto3.client("s3", endpoint_url=server)
    first, second = storage.join(root, "a/first"), storage.join(root, "a/second")
    storage.write_bytes(first, b"1")
    assert storage.list_files(root) == [first] and not storage.exists(second)
    other.put_object(Bucket=BUCKET, Key=second.split(f"{BUCKET}/")[1], Body=b"22")
    other.delete_object(Bucket=BUCKET, Key=first.split(f"{BUCKET}/")[1])
    assert storage.exists(second) and not storage.exists(first)
    assert storage.list_sizes(root) == {second: 2} and storage.read_bytes(second) == b"22"
    other.put_object(Bucket=BUCKET, Key=second.split(f"{BUCKET}/")[1], Body=b"333")
    assert storage.size_of(second) == 3 and storage.read_bytes(second) == b"333"


def test_a_bucket_that_is_not_there_is_the_users_mistake_and_is_not_made(
    moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "s3://no-such-bucket/x/y"
    with use_s3(moto, monkeypatch):
        for fails in (storage.read_bytes, storage.size_of):
            with pytest.raises(UsageError, match=r"no-such-bucket/x/y.*does not exist"):
                fails(path)
        for write in (storage.write_bytes, storage.create):
            with pytest.raises(UsageError, match=r"no-such-bucket/x/y.*bucket does not exist"):
                write(path, b"1")
        buckets = boto3.client("s3", endpoint_url=moto).list_buckets()["Buckets"]
        assert [bucket["Name"] for bucket in buckets] == [BUCKET]


def test_a_lost_reply_is_recognised_as_ones_own_write(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyProxy(server) as proxy, use_s3(proxy.url, monkeypatch) as bucket:
        path = storage.join(bucket, "lost")
        proxy.lose_next(1)
        assert storage.create(path, b"mine")
        assert proxy.lost == 1 and proxy.requests["PUT"] == 2, "the second was refused by the store"
        proxy.lose_next(1)
        assert not storage.create(path, b"late")
        assert storage.read_bytes(path) == b"mine"
        storage.delete(path)


@pytest.mark.slow
def test_a_large_file_is_created_in_one_request(seaweed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = os.urandom(101 << 20)
    with FaultyProxy(seaweed) as proxy, use_s3(proxy.url, monkeypatch) as bucket:
        path = storage.join(bucket, "large")
        assert storage.create(path, payload) and proxy.requests == {"PUT": 1}
        assert not storage.create(path, payload[:-1] + b"?")
        assert storage.sha256_of(path) == hashlib.sha256(payload).hexdigest()
        proxy.lose_next(1)
        storage.delete(path)
        proxy.lose_next(1)
        assert storage.create(path, payload), "its reply was lost"
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


@pytest.mark.slow
def test_one_of_many_creates_a_file(seaweed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with use_s3(seaweed, monkeypatch) as root, ThreadPoolExecutor(8) as pool:
        for number in range(10):
            path = storage.join(root, "race", str(number))
            won = list(pool.map(lambda who, path=path: storage.create(path, f"{who}".encode()), range(8)))
            assert won.count(True) == 1
            assert storage.read_bytes(path) == str(won.index(True)).encode()
