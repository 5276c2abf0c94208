"""Processor time and memory of a whole process tree, read from outside.

Ray's daemons and workers, DataLoader's workers and every other descendant are counted; a process that once belonged to
the tree stays in it when its parent dies. The last reading of a process that has ended is kept, so at most the time
since the previous sample of a process that ends inside a measured region is lost.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

__all__ = ["ProcessTree"]

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError, PermissionError)


class ProcessTree:
    """The tree below a process, that process included; thread-safe."""

    def __init__(self, root: int) -> None:
        self._alive: dict[tuple[int, float], psutil.Process] = {}
        self._cpu_s: dict[tuple[int, float], float] = {}
        self._peak_bytes = 0
        self._lock = threading.Lock()
        self._add(psutil.Process(root))

    def cpu_s(self) -> float:
        """Processor time, user and system, of everything that has run in the tree since it was first seen."""
        with self._lock:
            self._refresh()
            return sum(self._cpu_s.values())

    def sample_memory(self) -> int:
        """Bytes that the tree holds now, shared pages once; raises the peak."""
        with self._lock:
            self._refresh()
            processes = list(self._alive.values())
        now = _memory_bytes(processes)
        with self._lock:
            self._peak_bytes = max(self._peak_bytes, now)
        return now

    def take_peak_bytes(self) -> int:
        """The peak since the last call; starts a new one."""
        with self._lock:
            peak, self._peak_bytes = self._peak_bytes, 0
        return peak

    @contextlib.contextmanager
    def watched(self, interval_s: float) -> Iterator[None]:
        """Sample in a thread for the length of the block; at its end everything that is left of the tree is killed.

        Sampling takes at most a fifth of a CPU, whatever the interval.
        """
        stop = threading.Event()

        def watch() -> None:
            cost_s = 0.0
            while not stop.wait(max(interval_s, 4 * cost_s)):
                began_s = time.thread_time()
                self.sample_memory()
                cost_s = time.thread_time() - began_s

        thread = threading.Thread(target=watch, name="process-tree", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._kill()

    def _refresh(self) -> None:
        """Take in new descendants, then read everybody's processor time."""
        everyone = list(psutil.process_iter(["ppid"]))
        known = {pid for pid, _ in self._alive}
        grown = True
        while grown:
            new = [p for p in everyone if p.info["ppid"] in known and p.pid not in known]
            known.update(p.pid for p in new)
            grown = bool(new)
            for process in new:
                with contextlib.suppress(*_GONE):
                    self._add(process)
        for key, process in list(self._alive.items()):
            try:
                times = process.cpu_times()
                self._cpu_s[key] = times.user + times.system
            except _GONE:
                del self._alive[key]

    def _add(self, process: psutil.Process) -> None:
        key = (process.pid, process.create_time())
        self._alive.setdefault(key, process)

    def _kill(self) -> None:
        with self._lock:
            self._refresh()
            for process in self._alive.values():
                with contextlib.suppress(*_GONE):
                    process.kill()
            psutil.wait_procs(list(self._alive.values()), timeout=5)


def _memory_bytes(processes: list[psutil.Process]) -> int:
    """Proportional set size of all, plus shared memory that is allocated but mapped by none of them at this moment.

    The second part is Ray's object store: a page of it counts as long as it is allocated, whether or not a process has
    touched it lately. Where the system does not tell the proportional size, resident size stands in.
    """
    total = shared = 0
    files: dict[tuple[int, int], int] = {}
    for process in processes:
        try:
            pages = _smaps(process.pid)
            total += pages.get("Pss", 0)
            shared += pages.get("Pss_Shmem", 0)
            files.update(_shared_files(process.pid))
        except _GONE:
            with contextlib.suppress(*_GONE):
                if not Path("/proc/self/smaps_rollup").exists():
                    total += process.memory_info().rss
    return total + max(0, sum(files.values()) - shared)


def _smaps(pid: int) -> dict[str, int]:
    """Bytes by name from the kernel's summary of a process's mappings."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name.rstrip(":"): int(value) << 10 for name, value, *_ in (line.split() for line in lines)}


def _shared_files(pid: int) -> dict[tuple[int, int], int]:
    """Allocated bytes of the files in /dev/shm, deleted ones included, that a process has open."""
    found = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(*_GONE):
            if os.readlink(entry.path).startswith("/dev/shm/"):
                status = os.stat(entry.path)
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found
