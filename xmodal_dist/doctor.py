"""Checks of this machine before a job: versions, memory, disk, Ray, storage. Each finding says what to do."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import Literal, NamedTuple

from xmodal_dist import runtime, storage
from xmodal_dist.errors import XmodalError

__all__ = ["Finding", "examine"]

_TESTED = {
    "ray": ("2.56", "2.61"),
    "torch": ("2.6", "2.14"),
    "pyarrow": ("15", None),
    "pillow": ("12.3", None),
}
_LOW_BYTES = 1 << 30


class Finding(NamedTuple):
    """One check: its outcome, what was seen, and what to do ("" if nothing)."""

    check: str
    level: Literal["ok", "warning", "error"]
    seen: str
    advice: str = ""


def examine(path: str | None = None) -> Iterator[Finding]:
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
    if path is not None:
        yield _writable(path)
    yield _ray()


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

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("accelerator", "ok", ", ".join(names))
    return Finding("accelerator", "ok", f"none; {torch.get_num_threads()} CPU threads")


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available
    advice = "stop other programs, or use a larger machine: Ray alone takes about 1 GiB"
    return _sized("free memory", free, 3 * _LOW_BYTES, advice)


def _free(what: str, path: str, advice: str) -> Finding:
    try:
        return _sized(f"free space for {what}", shutil.disk_usage(path).free, _LOW_BYTES, advice)
    except OSError as error:
        return Finding(f"free space for {what}", "warning", str(error), advice)


def _sized(check: str, free: int, needed: int, advice: str) -> Finding:
    seen = f"{free / (1 << 30):.1f} GiB"
    return Finding(check, "ok", seen) if free >= needed else Finding(check, "warning", seen, advice)


def _writable(path: str) -> Finding:
    """Write, create exclusively twice, and remove a probe file."""
    probe = storage.join(storage.absolute(path), f".probe-{uuid.uuid4().hex}")
    try:
        first, second = storage.create(probe, b"1"), storage.create(probe, b"2")
        fs, inner = storage.filesystem(probe)
        fs.rm(inner)
    except XmodalError as error:
        return Finding(f"storage {path}", "error", str(error), "choose another path, or mend its permissions")
    if not first or second:
        return Finding(
            f"storage {path}",
            "error",
            "two writers could create the same file",
            "use one writer, or other storage",
        )
    return Finding(f"storage {path}", "ok", "writes, and creates exclusively")


def _ray() -> Finding:
    try:
        with runtime.connect():
            import ray

            resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
            nodes = sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever Ray raises is the finding
        return Finding("ray", "error", str(error).splitlines()[0], "see the logs under /tmp/ray")
    seen = f"{nodes} node(s), {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
    return Finding("ray", "ok", seen)
