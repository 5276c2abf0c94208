"""Media named by path or URI become bytes; what cannot be fetched is an error of its row, and null."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from xmodal_dist.dataset.schema import Field
from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities.fields import FieldSpec, field_settings
from xmodal_dist.pipeline.decode import RowError
from xmodal_dist.pipeline.fetch import FetchLimits, fetch_media


def _spec(field: Field) -> FieldSpec:
    return FieldSpec(field.name, field.columns, field_settings(field.name, field.kind, {}), Fitted())


PICTURE = _spec(Field(name="picture", kind="image", columns=("file",)))
CAPTION = _spec(Field(name="caption", kind="text", columns=("words",)))


@pytest.mark.parametrize("threads", [1, 4])
def test_paths_and_uris_become_bytes(tmp_path: Path, threads: int) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"relative")
    (tmp_path / "b.png").write_bytes(b"absolute")
    with fsspec.open("memory://bucket/c.png", "wb") as handle:
        handle.write(b"remote")
    files = ["a.png", str(tmp_path / "b.png"), "memory://bucket/c.png", None, "gone.png", "nowhere://x/y.png"]
    table = pa.table({"words": ["a.png"] * 6, "file": files})
    fetched, errors = fetch_media(table, [CAPTION, PICTURE], str(tmp_path / "sub"), threads)
    assert fetched.column("file").to_pylist() == [b"relative", b"absolute", b"remote", None, None, None]
    assert fetched.column("words").equals(table.column("words")), "text is not a path"
    assert fetched.column_names == table.column_names
    assert [(e.row, e.field, e.error.reason) for e in errors] == [
        (4, "picture", "uri_not_found"),
        (5, "picture", "fetch_failed"),
    ]
    assert "gone.png" in errors[0].error.detail


def test_bytes_stay_as_they_are() -> None:
    table = pa.table({"file": pa.array([b"x", None], pa.binary())})
    fetched, errors = fetch_media(table, [PICTURE], "/nowhere", 2)
    assert fetched is table and errors == []


MIB = 2**20
QUICK = FetchLimits(attempts=4, first_wait_s=0.02, timeout_s=20.0)


class _Server(ThreadingHTTPServer):
    """A store that fails, dawdles and counts as its paths say.

    ``/fail/K/...`` answers 503 to the first K requests, ``/status/CODE/...`` always CODE, ``/size/N`` has N bytes and
    knows ranges, ``/whole/N`` has N bytes and does not, ``/slow/...`` waits until the test ends.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()

    def uri(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.requests[self.path] += 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        kind, value = self.path.split("/")[1:3]
        if kind == "slow":
            self.server.ended.wait(20)
        if kind == "fail" and self.server.requests[self.path] <= int(value):
            status, payload = 503, b"later"
        elif kind == "status":
            status, payload = int(value), b"no"
        elif kind in ("size", "whole"):
            status, payload = self._range(bytes(itertools.islice(itertools.cycle(b"0123456789"), int(value))))
        else:
            status, payload = 200, b"payload"
        if kind == "size":
            time.sleep(0.01)  # long enough for requests to meet
        with self.server.lock:  # before the client can know
            self.server.at_once -= body
            self.server.sent_bytes[self.path] += len(payload) * body
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if body:
            self.wfile.write(payload)

    def _range(self, payload: bytes) -> tuple[int, bytes]:
        asked = self.headers.get("Range")
        if asked is None or self.path.startswith("/whole"):
            return 200, payload
        start, last = map(int, asked.removeprefix("bytes=").split("-"))
        return (206, payload[start : last + 1]) if start < len(payload) else (416, b"")


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


def _fetch(
    values: list[str | None], limits: FetchLimits = QUICK, threads: int = 4
) -> tuple[list[bytes | None], list[RowError]]:
    fetched, errors = fetch_media(pa.table({"file": values}), [PICTURE], "/nowhere", threads, limits)
    payloads: list[bytes | None] = fetched.column("file").to_pylist()
    assert all(payloads[error.row] is None for error in errors)
    return payloads, errors


def test_what_passes_by_itself_is_tried_again(server: _Server) -> None:
    paths = ["fail/0/a.png", "fail/2/b.png", "fail/3/c.png"]
    payloads, errors = _fetch([server.uri(path) for path in paths])
    assert payloads == [b"payload"] * 3 and errors == []
    assert [server.requests["/" + path] for path in paths] == [1, 3, 4]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_does_not_pass_is_one_error_with_its_name_and_the_number_of_tries(
    server: _Server, status: int
) -> None:
    uris = [server.uri(f"status/{status}/{name}.png") for name in "ab"]
    payloads, errors = _fetch([uris[0], None, uris[1]])
    assert payloads == [None, None, None]
    assert [(e.row, e.field, e.error.reason) for e in errors] == [
        (0, "picture", "fetch_failed"),
        (2, "picture", "fetch_failed"),
    ]
    for uri, error in zip(uris, errors, strict=True):
        assert uri in error.error.detail and "tried 4 times" in error.error.detail
        assert str(status) in error.error.detail
    assert set(server.requests.values()) == {4}


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "uri_not_found"), (403, "uri_access_denied"), (400, "fetch_failed")]
)
def test_what_will_not_pass_is_asked_for_once(server: _Server, status: int, reason: str) -> None:
    _, errors = _fetch([server.uri(f"status/{status}/x.png")])
    assert [e.error.reason for e in errors] == [reason]
    assert set(server.requests.values()) == {1}


def test_nobody_listens(server: _Server) -> None:
    server.server_close()
    _, errors = _fetch([server.uri("fail/0/x.png")])
    assert [e.error.reason for e in errors] == ["fetch_failed"]
    assert "tried 4 times" in errors[0].error.detail


def test_a_slow_answer_holds_nothing_up_for_longer_than_the_timeout(server: _Server) -> None:
    began = time.monotonic()
    limits = FetchLimits(attempts=2, first_wait_s=0.01, timeout_s=0.3)
    payloads, errors = _fetch([server.uri("slow/x.png"), server.uri("fail/0/x.png")], limits)
    assert time.monotonic() - began < 10
    assert payloads == [None, b"payload"]
    assert "no answer in 0.3 s, tried 2 times" in errors[0].error.detail


def test_other_remote_stores_are_tried_again_too() -> None:
    class Flaky(MemoryFileSystem):
        protocol = "flaky"
        failures = 2

        def cat_file(self, *args: Any, **kwargs: Any) -> bytes:
            Flaky.failures -= 1
            if Flaky.failures >= 0:
                raise OSError("connection lost")
            return b"payload"

    fsspec.register_implementation("flaky", Flaky, clobber=True)
    assert _fetch(["flaky://x.png"]) == ([b"payload"], [])


@pytest.mark.parametrize("kind", ["size", "whole"])
def test_values_come_whole_whatever_their_size(server: _Server, kind: str) -> None:
    sizes = [0, 1, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 5 * MIB]
    payloads, errors = _fetch([server.uri(f"{kind}/{size}") for size in sizes])
    assert errors == []
    pattern = b"0123456789" * (MIB // 2 + 1)
    assert all(p == pattern[:size] for p, size in zip(payloads, sizes, strict=True))


@pytest.mark.parametrize("max_bytes", [1000, 3 * MIB])
def test_a_value_above_the_bound_is_not_fetched_whole(
    server: _Server, tmp_path: Path, max_bytes: int
) -> None:
    limits = FetchLimits(max_bytes=max_bytes)
    (tmp_path / "large.png").write_bytes(b"x" * (max_bytes + 1))
    (tmp_path / "fits.png").write_bytes(b"x" * max_bytes)
    names = [server.uri(f"size/{20 * MIB}"), str(tmp_path / "large.png"), server.uri(f"size/{max_bytes}")]
    payloads, errors = _fetch([*names, str(tmp_path / "fits.png")], limits)
    assert [p and len(p) for p in payloads] == [None, None, max_bytes, max_bytes]
    assert [(e.row, e.error.reason) for e in errors] == [
        (0, "media_too_large_bytes"),
        (1, "media_too_large_bytes"),
    ]
    assert f"max_bytes is {max_bytes}" in errors[0].error.detail
    assert server.sent_bytes[f"/size/{20 * MIB}"] <= max_bytes + 1


def test_a_fields_own_bound_holds(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x" * 11)
    spec = FieldSpec("picture", ("file",), field_settings("picture", "image", {"max_bytes": 10}), Fitted())
    _, errors = fetch_media(pa.table({"file": ["x.png"]}), [spec], str(tmp_path), 1)
    assert [e.error.reason for e in errors] == ["media_too_large_bytes"]


@pytest.mark.parametrize(("mib_in_flight", "threads", "most"), [(1, 4, 1), (8, 8, 2), (256, 3, 3)])
def test_bytes_in_flight_and_threads_bound_the_requests(
    server: _Server, mib_in_flight: int, threads: int, most: int
) -> None:
    limits = FetchLimits(max_bytes_in_flight=mib_in_flight * MIB)
    uris = [server.uri(f"size/{100_000 + i}") for i in range(20)]
    payloads, errors = _fetch(list(uris), limits, threads)
    assert [p and len(p) for p in payloads] == [100_000 + i for i in range(20)] and errors == []
    assert server.most_at_once <= most


def test_the_threads_stay_for_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")

    def fetch() -> set[int | None]:
        fetch_media(pa.table({"file": ["x.png"] * 50}), [PICTURE], str(tmp_path), 3)
        return {t.ident for t in threading.enumerate() if t.name.startswith("fetch")}

    first = fetch()
    assert first and all(first <= fetch() for _ in range(3))
