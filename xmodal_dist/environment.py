"""What a command ran on: versions, hardware, the commit of the code around it. Written down beside results."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import socket
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from xmodal_dist import runtime
from xmodal_dist.version import __version__

__all__ = ["accelerators", "capture"]

_PACKAGES = (
    "ray",
    "torch",
    "numpy",
    "pyarrow",
    "pillow",
    "pydantic",
    "tokenizers",
    "transformers",
    "timm",
    "av",
)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_GIT_TIMEOUT_S = 10


def capture() -> dict[str, Any]:
    """The environment of this process, as it is now.

    Returns:
        JSON-able: ``started`` (UTC, ISO 8601), ``command`` (as a shell takes it, without credentials in addresses),
        ``host``, ``system``, ``cpu`` (its name), ``cores`` (usable by this process), ``memory_bytes``, ``accelerators``
        (names of this machine's), ``python``, ``packages`` (name -> version, of those that are installed), ``cluster``
        (``nodes``, ``cpus``, ``gpus`` of the Ray session; None outside one) and ``git`` (``commit`` and ``changed``,
        whether tracked files differ from it, of the repository around the working directory; None outside one).
    """
    import psutil

    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": _CREDENTIALS.sub("***@", shlex.join([_program(), *sys.argv[1:]])),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": runtime.usable_cores(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "accelerators": accelerators(),
        "python": platform.python_version(),
        "packages": {"xmodal-dist": __version__, **_versions()},
        "cluster": _cluster(),
        "git": _git(),
    }


def accelerators() -> list[str]:
    """Names of this machine's GPUs."""
    import torch

    return [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "xmodal" if name in ("-c", "__main__.py") else name


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cluster() -> dict[str, float] | None:
    if not runtime.is_connected():
        return None
    amounts = {name.lower() + "s": runtime.cluster_resource(name) for name in ("CPU", "GPU")}
    return {"nodes": runtime.nodes_alive(), **amounts}


def _git() -> dict[str, Any] | None:
    commit = _ask_git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _ask_git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changes is None else bool(changes)}


def _ask_git(*arguments: str) -> str | None:
    """What git says in the working directory; None where it cannot say, or takes too long."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
