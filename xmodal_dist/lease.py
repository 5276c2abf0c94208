"""A lease on a folder, for stores that cannot create a file exclusively: one writer at a time, by the clock.

It is weaker than exclusive creation: it trusts the writers' clocks to agree within a third of its length, and a writer
that was frozen past its end may still write once when it wakes up.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from xmodal_dist import storage
from xmodal_dist.errors import RunAgainError

__all__ = ["hold", "take"]


def take(path: str, owner: str, length_s: float, now_s: float) -> None:
    """Write the lease down as ``owner``'s for ``length_s`` seconds from ``now_s``, if nobody else's is still good.

    Raises:
        RunAgainError: somebody else holds it.
    """
    if storage.exists(path):
        held = json.loads(storage.read_text(path))
        if held["owner"] != owner and held["until_s"] > now_s:
            raise RunAgainError(
                f"{path}: another writer ({held['owner']}) holds the output for {held['until_s'] - now_s:.0f} s more, "
                "and this store cannot keep two apart. Give the same command again when it has ended"
            )
    storage.write_bytes(path, json.dumps({"owner": owner, "until_s": now_s + length_s}).encode())


@contextlib.contextmanager
def hold(
    path: str, length_s: float = 120.0, settle_s: float = 2.0, clock: Callable[[], float] = time.time
) -> Iterator[None]:
    """Hold a lease for the length of the block, renewed by a thread.

    Args:
        path: where it is written.
        length_s: how long it is good without being renewed.
        settle_s: how long to wait for a writer that took it at the same moment; the last one has it.
        clock: seconds of the wall clock.

    Raises:
        RunAgainError: somebody else holds it, at the beginning or, after having been away too long, at the end.
    """
    owner, done = uuid.uuid4().hex[:12], threading.Event()
    take(path, owner, length_s, clock())
    done.wait(settle_s)
    take(path, owner, length_s, clock())
    lost: list[RunAgainError] = []

    def renew() -> None:
        while not done.wait(length_s / 3):
            try:
                take(path, owner, length_s, clock())
            except RunAgainError as error:
                lost.append(error)
                return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if lost:
        raise lost[0]
    storage.delete(path)
