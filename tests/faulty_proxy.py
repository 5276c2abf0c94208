"""An HTTP proxy in front of a store that fails as stores do: bursts of 503, and replies that get lost."""

from __future__ import annotations

import http.client
import http.server
import random
import threading
from collections import Counter
from types import TracebackType
from urllib.parse import urlsplit

__all__ = ["FaultyProxy"]

_SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>'
)
_BURST = 3


class FaultyProxy:
    """Forwards requests to a server; a context manager.

    Args:
        target: URL of the server.
        share_503: chance of a request to begin a burst of 503 replies, which the server never sees.
        share_lost: chance of a request that writes to reach the server, and of its reply to be dropped.
        seed: of both.

    ``refused`` and ``lost`` count the faults so far, ``requests`` what reached the server by method.
    """

    def __init__(
        self, target: str, *, share_503: float = 0.0, share_lost: float = 0.0, seed: int = 0
    ) -> None:
        self.refused = self.lost = 0
        self.requests: Counter[str] = Counter()
        self._target = urlsplit(target)
        self._shares = share_503, share_lost
        self._chance = random.Random(seed)
        self._burst = self._to_lose = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def refuse_next(self, requests: int) -> None:
        """Answer the next requests with 503, whatever the chances."""
        with self._lock:
            self._burst = requests

    def lose_next(self, replies: int) -> None:
        """Drop the replies to the next requests that write, whatever the chances."""
        with self._lock:
            self._to_lose = replies

    def _fate(self, method: str) -> str:
        share_503, share_lost = self._shares
        with self._lock:
            if self._burst:
                self._burst -= 1
                self.refused += 1
                return "503"
            if self._chance.random() < share_503:
                self._burst = self._chance.randint(0, _BURST)
                self.refused += 1
                return "503"
            self.requests[method] += 1
            if method not in ("PUT", "POST", "DELETE"):
                return "fine"
            if self._to_lose or self._chance.random() < share_lost:
                self._to_lose = max(0, self._to_lose - 1)
                self.lost += 1
                return "lost"
        return "fine"

    def _handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fate = self._fate(request.command)
        if fate == "503":
            _reply(request, 503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
            return
        connection = http.client.HTTPConnection(str(self._target.hostname), self._target.port, timeout=60)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in ("expect", "connection")}
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            payload = answer.read()
        finally:
            connection.close()
        if fate == "lost":
            request.close_connection = True
            request.connection.close()
            return
        told = {k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
        _reply(request, answer.status, told, payload)


def _reply(
    request: http.server.BaseHTTPRequestHandler, status: int, headers: dict[str, str], payload: bytes
) -> None:
    request.send_response_only(status)
    for name, value in headers.items():
        if request.command == "HEAD" or name.lower() != "content-length":
            request.send_header(name, value)
    if request.command != "HEAD" and status not in (204, 304):
        request.send_header("Content-Length", str(len(payload)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(payload)
