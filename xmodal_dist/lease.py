"""A lease on a folder, for stores that cannot create a file exclusively: one writer at a time.

A writer takes the lease by writing its record, waits, and has it if the record is still its own then (Fischer's
algorithm of mutual exclusion). It renews the record every third of the lease's length, and gives up by its own
monotonic clock once a renewal is late. A record that has run out by the wall clock is taken over only after it was
watched for half its length without being renewed: so a clock that is wrong delays a writer, and lets no second in.

It is weaker than exclusive creation. Two writers get in if one is frozen between reading and writing the record for
longer than ``settle_s`` while the other takes it; and a writer that was frozen past the end of its lease may finish the
write that it was frozen in. Both learn of it at their next renewal.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Protocol

from xmodal_dist import storage
from xmodal_dist.errors import RunAgainError, StorageError, UsageError

__all__ = ["Clock", "Lease", "hold"]


class Clock(Protocol):
    """The parts of the module ``time`` that a lease goes by."""

    def time(self) -> float:
        """Seconds since 1970, that may be wrong."""

    def monotonic(self) -> float:
        """Seconds that only grow."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


class Lease:
    """One writer's side of a lease.

    Args:
        path: of its record.
        owner: what others are told of this writer.
        ttl_s: how long it is good without being renewed, in seconds.
        settle_s: how long a write may take to be seen by another writer, and another writer from reading the record to
            writing it, in seconds; shorter than ``ttl_s``.
        clock: to go by.
    """

    def __init__(
        self,
        path: str,
        owner: str,
        ttl_s: float = 120.0,
        *,
        settle_s: float = 2.0,
        clock: Clock = time,
    ) -> None:
        self.path, self.owner, self.ttl_s = path, owner, ttl_s
        self._settle_s, self._clock = settle_s, clock
        self._token = uuid.uuid4().hex
        self._good_until_s = float("-inf")

    def acquire(self) -> None:
        """Take it, from nobody or from a writer that is gone.

        Raises:
            RunAgainError: another writer holds it; who, and until when.
        """
        record = self._read()
        if record is not None:
            if _until(record) > self._clock.time():
                raise self._refusal(record)
            self._clock.sleep(self.ttl_s / 2)
            if (now := self._read()) not in (record, None):
                raise self._refusal(now)
        self._write()
        self._clock.sleep(self._settle_s)
        self._check_record()

    def renew(self) -> None:
        """Hold it for another ``ttl_s``.

        Raises:
            RunAgainError: it is another writer's by now, or may be.
        """
        self.check()
        self._check_record()
        before = self._good_until_s
        self._write()
        if self._clock.monotonic() > before:
            raise self._lateness()

    def check(self) -> None:
        """Raise RunAgainError if it was not renewed in time."""
        if self._clock.monotonic() > self._good_until_s:
            raise self._lateness()

    def release(self) -> None:
        """Give it back; another writer's record stays."""
        if _token(self._read()) == self._token:
            storage.delete(self.path)

    def _read(self) -> bytes | None:
        try:
            return storage.read_bytes(self.path)
        except UsageError:
            return None

    def _write(self) -> None:
        began_s = self._clock.monotonic()
        record = {"token": self._token, "owner": self.owner, "until_s": self._clock.time() + self.ttl_s}
        storage.write_bytes(self.path, json.dumps(record).encode())
        self._good_until_s = began_s + self.ttl_s

    def _check_record(self) -> None:
        record = self._read()
        if _token(record) != self._token:
            raise self._refusal(record)

    def _refusal(self, record: bytes | None) -> RunAgainError:
        if record is None:
            return RunAgainError(f"somebody removed {self.path!r}, by which one writer is kept from another")
        fields = _fields(record)
        until = datetime.datetime.fromtimestamp(max(0.0, _until(record)), datetime.timezone.utc)
        return RunAgainError(
            f"{self.path!r}: {fields.get('owner', 'another writer')} holds this output until "
            f"{until:%Y-%m-%d %H:%M:%S} UTC unless it goes on, and this store cannot keep two writers apart. "
            "Give the same command again when it has ended"
        )

    def _lateness(self) -> RunAgainError:
        return RunAgainError(
            f"{self.path!r} could not be renewed within {self.ttl_s:g} s, so another writer may be at work. "
            "Give the same command again"
        )


@contextlib.contextmanager
def hold(path: str, ttl_s: float = 120.0, settle_s: float = 2.0) -> Iterator[None]:
    """Hold a lease for the length of the block, renewed by a thread.

    Args:
        path: of its record.
        ttl_s: how long it is good without being renewed, in seconds.
        settle_s: as of :class:`Lease`.

    Raises:
        RunAgainError: somebody else holds it, at the beginning; or, at the end, it was lost meanwhile.
    """
    lease = Lease(path, f"process {os.getpid()} on {socket.gethostname()}", ttl_s, settle_s=settle_s)
    lease.acquire()
    done, lost = threading.Event(), list[RunAgainError]()

    def renew() -> None:
        while not done.wait(ttl_s / 3):
            try:
                lease.renew()
            except StorageError:
                continue  # it is good for a while yet
            except RunAgainError as error:
                lost.append(error)
                return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
        if lost:
            raise lost[0]
        lease.check()
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(StorageError):  # it runs out by itself
            lease.release()


def _fields(record: bytes | None) -> dict[str, object]:
    """What a record says; nothing if it is damaged."""
    try:
        fields = json.loads(record or b"")
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _token(record: bytes | None) -> object:
    return _fields(record).get("token")


def _until(record: bytes) -> float:
    until = _fields(record).get("until_s")
    return float(until) if isinstance(until, int | float) else float("-inf")
