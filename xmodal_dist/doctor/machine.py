"""Checks of this machine: versions, accelerator, memory, disk, the token, and the storage that jobs write to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from xmodal_dist import environment, runtime, storage
from xmodal_dist.doctor.finding import LOW_BYTES, ONE_DRIVER, SLOW_BYTES_PER_S, Finding, gib, graded
from xmodal_dist.errors import AuthenticationError, XmodalError
from xmodal_dist.submit.request import find_token

__all__ = ["examine_machine"]

_TESTED = {
    "ray": ("2.56", "2.61"),
    "torch": ("2.6", "2.14"),
    "pyarrow": ("15", None),
    "pillow": ("12.3", None),
}
_PROBE_BYTES = 8 << 20


def examine_machine(path: str | None = None) -> Iterator[Finding]:
    """Run the checks, slowest last.

    Args:
        path: directory or URI that jobs will write to; None leaves its check out.
    """
    yield Finding("python", "ok", platform.python_version())
    for package, (low, high) in _TESTED.items():
        yield _version(package, low, high)
    yield _accelerator()
    yield _memory()
    yield _free("temporary files", tempfile.gettempdir(), "set TMPDIR to a larger disk")
    yield _free("shared memory", "/dev/shm", "start the container with a larger --shm-size")
    yield _token()
    if path is not None:
        yield _storage(path)


def _version(package: str, low: str, high: str | None) -> Finding:
    seen = importlib.metadata.version(package)
    numbers = _numbers(seen)
    if numbers < _numbers(low) or (high is not None and numbers >= _numbers(high)):
        wanted = f">={low}" + (f",<{high}" if high else "")
        return Finding(package, "error", seen, f"install {package}{wanted}")
    return Finding(package, "ok", seen)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


def _accelerator() -> Finding:
    import torch

    if names := environment.accelerators():
        return Finding("accelerator", "ok", ", ".join(names))
    return Finding("accelerator", "ok", f"none; {torch.get_num_threads()} CPU threads")


def _memory() -> Finding:
    free = runtime.free_memory_bytes()
    advice = "stop other programs, or use a larger machine: Ray alone takes about 1 GiB"
    return graded("free memory", gib(free), advice, warn=free < 3 * LOW_BYTES)


def _free(what: str, path: str, advice: str) -> Finding:
    check = f"free space for {what}"
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Finding(check, "warning", str(error), advice)
    return graded(check, gib(free), advice, warn=free < LOW_BYTES)


def _token() -> Finding:
    """Whether a token is found where Ray looks for it; only whether, never which."""
    try:
        found = find_token(os.environ, Path.home())
    except AuthenticationError as error:
        return Finding(
            "token", "error", str(error), "name a file that holds the token, or unset the variable"
        )
    if os.environ.get("RAY_AUTH_MODE") == "token" and found is None:
        advice = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or make one: ray get-auth-token --generate"
        return Finding("token", "error", "RAY_AUTH_MODE=token, but there is no token", advice)
    return Finding("token", "ok", "found" if found else "none; clusters elsewhere ask for one")


def _storage(path: str) -> Finding:
    """Write, read back and remove a file, with speed, and let several writers try to create one."""
    check, folder = f"storage {path}", storage.absolute(path)
    probe, payload = storage.join(folder, f"_doctor-{uuid.uuid4().hex}"), os.urandom(_PROBE_BYTES)
    try:
        began_s = time.perf_counter()
        storage.write_bytes(probe, payload)
        written_s = time.perf_counter()
        same = storage.read_bytes(probe) == payload
        read_s = time.perf_counter()
        storage.delete(probe)
        exclusive = storage.exclusive_create_works(folder)
    except XmodalError as error:
        return Finding(check, "error", str(error), "choose another path, or mend its permissions")
    if not same:
        return Finding(check, "error", "reads other bytes than were written", "choose other storage")
    speeds = [_PROBE_BYTES / max(s, 1e-9) for s in (written_s - began_s, read_s - written_s)]
    seen = f"writes {speeds[0] / 1e6:.0f} MB/s, reads {speeds[1] / 1e6:.0f} MB/s"
    if not exclusive:
        return Finding(check, "warning", f"{seen}; two writers can create the same file", ONE_DRIVER)
    advice = "use storage nearer to the machines: datasets and checkpoints cross it"
    return graded(check, f"{seen}, creates exclusively", advice, warn=min(speeds) < SLOW_BYTES_PER_S)
