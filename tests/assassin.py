"""Kills a worker of a run as soon as the run's log says that it is time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xmodal_dist.train.log import read_metrics

__all__ = ["assassin", "has_done"]

_INTERVAL_S = 0.005


@contextmanager
def assassin(run: Path, rank: int, is_time: Callable[[Sequence[dict[str, Any]]], bool]) -> Iterator[None]:
    """While the block runs, wait for ``is_time`` of the log's lines, then send SIGKILL to that rank, once.

    Args:
        run: directory of the run; it need not be there yet.
        rank: of the first attempt's workers; negative ones count from the last.
        is_time: is not asked before the workers have said who they are.
    """
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if (lines := read_metrics(str(run))) and is_time(lines):
                os.kill(lines[0]["workers"][rank]["pid"], signal.SIGKILL)
                return
            time.sleep(_INTERVAL_S)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def has_done(lines: Sequence[dict[str, Any]], step: int) -> bool:
    """Whether a global step was logged that is as late as this one."""
    return any(line["event"] == "step" and line["step"] >= step for line in lines)
