"""Faults of remote stores that pass are waited out; those that do not are told at once, with the path."""

from __future__ import annotations

import asyncio
import errno
import uuid
from collections.abc import Callable
from typing import Any

import botocore.exceptions
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from xmodal_dist import retries, storage
from xmodal_dist.errors import StorageError, UsageError


def _refusal(status: int, kind: type[OSError] = OSError) -> OSError:
    """As s3fs raises it."""
    reply: Any = {"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = kind(errno.EINVAL, "refused")
    error.__cause__ = botocore.exceptions.ClientError(reply, "PutObject")
    return error


class _Ranges(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.fail()
        return bytes(MemoryFileSystem.cat_file(self.fs, self.path, start, end))


class _Flaky(MemoryFileSystem):
    """A store that fails as often as it is told to, also in the middle of a file."""

    protocol = "flaky"
    faults: list[BaseException] = []

    def fail(self) -> None:
        if self.faults:
            raise self.faults.pop()

    def info(self, path: str, **kwargs: Any) -> Any:
        self.fail()
        return super().info(path, **kwargs)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.fail()
        super().pipe_file(path, value, mode)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> Any:
        self.fail()
        return super().cat_file(path, start, end)

    def rm_file(self, path: str) -> None:
        self.fail()
        super().rm_file(path)

    def ranges(self, path: str) -> _Ranges:
        return _Ranges(self, path, cache_type="none", size=MemoryFileSystem.info(self, path)["size"])

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        return self.ranges(path) if mode == "rb" else super().open(path, mode, **kwargs)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the store raises next, the last first."""
    fsspec.register_implementation("flaky", _Flaky, clobber=True)
    monkeypatch.setattr(retries, "RETRY_FOR_S", 5.0)
    _Flaky.faults = []
    return _Flaky.faults


PASSING = {
    "503": lambda: _refusal(503),
    "500": lambda: _refusal(500),
    "409": lambda: _refusal(409),
    "429": lambda: _refusal(429),
    "timeout": TimeoutError,
    "asyncio timeout": asyncio.TimeoutError,
    "reset": ConnectionResetError,
    "endpoint": lambda: botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
    "closed": lambda: botocore.exceptions.ConnectionClosedError(endpoint_url="http://x"),
    "read timeout": lambda: botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
}
LASTING = {
    "denied": lambda: PermissionError("AccessDenied"),
    "400": lambda: _refusal(400),
    "credentials": botocore.exceptions.NoCredentialsError,
}
CALLS: dict[str, Callable[[str], object]] = {
    "create": lambda path: storage.create(path + "-new", b"new"),
    "delete": storage.delete,
    "exists": storage.exists,
    "read_bytes": storage.read_bytes,
    "sha256_of": storage.sha256_of,
    "size_of": storage.size_of,
    "write_bytes": lambda path: storage.write_bytes(path, b"other"),
}


@pytest.fixture
def path(faults: list[BaseException]) -> str:
    path = f"flaky://{uuid.uuid4().hex}/file"
    storage.write_bytes(path, b"content")
    return path


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_waited_out(fault: str, call: str, path: str, faults: list[BaseException]) -> None:
    faults.append(PASSING[fault]())
    CALLS[call](path)
    assert not faults


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_told_at_once(fault: str, call: str, path: str, faults: list[BaseException]) -> None:
    faults += [LASTING[fault](), LASTING[fault]()]
    with pytest.raises(StorageError, match=path):
        CALLS[call](path)
    assert len(faults) == 1, "once"


def test_an_outage_without_end_names_the_path_and_the_tries(
    path: str, faults: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_FOR_S", 0.5)
    faults += [_refusal(503) for _ in range(1000)]
    with pytest.raises(StorageError, match=rf"cannot read '{path}': .*tried \d+ times"):
        storage.read_bytes(path)
    faults.clear()


def test_a_fault_in_the_middle_of_a_file_is_not_seen_by_its_reader(
    path: str, faults: list[BaseException]
) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": range(1000)}), sink)
    storage.write_bytes(path, sink.getvalue().to_pybytes())
    with storage.open_read(path) as handle, pq.ParquetFile(handle) as file:
        faults += [_refusal(503), TimeoutError()]
        assert file.read().column("x").to_pylist() == list(range(1000)) and not faults
        faults.append(PermissionError("AccessDenied"))
        with pytest.raises(StorageError, match=path):
            file.read()


@pytest.mark.parametrize("refused", [FileExistsError(), _refusal(412)], ids=["exists", "412"])
def test_a_refused_creation_asks_whose_the_file_is(
    refused: BaseException, path: str, faults: list[BaseException]
) -> None:
    faults += [TimeoutError(), refused]  # a time-out while asking does not decide it
    assert storage.create(path, b"content")
    assert not storage.create(path, b"CONTENT") and not storage.create(path, b"more content")


def test_a_file_that_is_refused_and_gone_is_created_again(path: str, faults: list[BaseException]) -> None:
    faults.append(FileExistsError())
    assert storage.create(path + "-new", b"new") and storage.read_bytes(path + "-new") == b"new"


def test_missing_files_are_not_waited_for(faults: list[BaseException]) -> None:
    assert not storage.exists("flaky://nothing/there")
    for call in (storage.size_of, storage.read_bytes, storage.sha256_of):
        with pytest.raises(UsageError, match="nothing/there.*does not exist"):
            call("flaky://nothing/there")
    assert storage.list_files("flaky://nothing") == [] and storage.list_sizes("flaky://nothing") == {}
