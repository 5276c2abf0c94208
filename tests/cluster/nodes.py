"""Nodes of a Ray cluster on this machine, each a host with its own address, that can be taken away and given back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.cluster.kustomize import CLUSTER

__all__ = ["Ended", "Nodes", "nodes", "wait_until"]

_REPOSITORY = CLUSTER.parent
_TIMEOUT_S = 900.0


class Ended(NamedTuple):
    """What a command printed, on both streams, and its exit code."""

    code: int
    text: str


class Nodes:
    """The script's cluster; its head is node 0."""

    def __init__(self, state: Path) -> None:
        binaries = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        local = {"XMODAL_LOCAL_DIR": str(state), "XMODAL_CPUS_PER_NODE": "1", "OMP_NUM_THREADS": "1"}
        self._environment = {**kept, **local, "PATH": binaries, "PYTHONPATH": str(_REPOSITORY)}
        self._state = state

    def script(self, *arguments: str | int) -> str:
        """Run ``cluster.sh`` with these arguments; what it printed."""
        command = ["bash", str(CLUSTER / "local" / "cluster.sh"), *map(str, arguments)]
        # Nodes inherit the output: a file does not wait for them to close it, as a pipe would.
        with tempfile.TemporaryFile("w+") as printed:
            run = subprocess.run(
                command, env=self._environment, stdout=printed, stderr=subprocess.STDOUT, timeout=_TIMEOUT_S
            )
            printed.seek(0)
            text = printed.read()
        assert run.returncode == 0, text
        return text

    @contextmanager
    def submit(self, *arguments: str) -> Iterator[Callable[[], Ended]]:
        """Submit a command; the block gets what waits for its end."""
        token = {"RAY_AUTH_TOKEN_PATH": str(self._state / "auth_token")}
        command = [sys.executable, "-m", "xmodal_dist.cli", "submit", *arguments]
        command += ["--address", "http://10.77.0.10:8265", "--working-dir", str(self._state / "tree")]
        (self._state / "tree").mkdir(exist_ok=True)
        with tempfile.TemporaryFile("w+") as printed:
            job = subprocess.Popen(
                command,
                env={**self._environment, **token},
                stdout=printed,
                stderr=subprocess.STDOUT,
                text=True,
            )

            def end() -> Ended:
                code = job.wait(_TIMEOUT_S)
                printed.seek(0)
                return Ended(code, printed.read())

            try:
                yield end
            finally:
                job.kill()
                job.wait()

    def run(self, *arguments: str) -> Ended:
        """Submit a command and wait for its end."""
        with self.submit(*arguments) as end:
            return end()

    def renew(self, numbers: Sequence[int]) -> None:
        """End nodes, and start new ones in their places."""
        for number in numbers:
            self.script("kill", number)
        for number in numbers:
            self.script("start", number)


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """A cluster of ``count`` nodes for the length of the block."""
    state = Path(tempfile.mkdtemp(prefix="xmodal-"))  # short: Ray's sockets lie below it
    cluster = Nodes(state)
    try:
        cluster.script("up", count)
        yield cluster
    finally:
        cluster.script("down")
        shutil.rmtree(state)


def wait_until(what: Callable[[], bool]) -> float:
    """Wait until it is true; returns when that was seen, as ``time.time()``."""
    give_up_s = time.monotonic() + _TIMEOUT_S
    while not what():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)
    return time.time()
