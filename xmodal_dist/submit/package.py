"""The working tree as one zip: what git knows or would add, without data, runs, environments and keys."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import translate
from pathlib import Path, PurePosixPath

from xmodal_dist.dataset.manifest import MANIFEST_NAME
from xmodal_dist.errors import UsageError

__all__ = ["DEFAULT_EXCLUDES", "MAX_BYTES", "files_to_send", "write_package"]

MAX_BYTES = 100 << 20
"""Size of the files of a package before compression. Ray keeps packages in the memory of the head node."""

DEFAULT_EXCLUDES = (
    ".git", ".hg", ".svn", ".venv*", "venv", "*.egg-info", "__pycache__", "*.pyc", ".*_cache", ".hypothesis",
    "node_modules", ".ipynb_checkpoints", "build", "dist", "runs", ".env", "*.pem", "*.key", "id_rsa*", "id_ed25519*",
)  # fmt: skip
"""Patterns of names that never travel."""

_PRODUCTS = ((MANIFEST_NAME, "data"), ("_run.json", "data"), ("run.json", "metrics.jsonl"))
"""What lies beside each other in datasets, scoring outputs and training runs."""
_EPOCH_OF_ZIP = (1980, 1, 1, 0, 0, 0)


def files_to_send(root: Path, excludes: Sequence[str] = ()) -> list[PurePosixPath]:
    """The files of a working tree that a job needs, relative to it and sorted.

    Inside a git repository these are the files that git tracks or would add; elsewhere all files. Datasets, runs and
    scoring outputs are left out wherever they lie.

    Args:
        root: the working tree.
        excludes: more patterns, each of a name (``*.mp4``, ``scratch``) or of a path from the root (``docs/*``).
    """
    unwanted = re.compile("|".join(translate(p.rstrip("/")) for p in (*DEFAULT_EXCLUDES, *excludes)))
    listed = _listed_by_git(root)
    found = sorted(_walk(root, unwanted) if listed is None else {p for p in listed if (root / p).is_file()})
    kept = [path for path in found if not _matches(path, unwanted)]
    products = {path.parent for path in kept if _is_product(root, path)}
    return [path for path in kept if products.isdisjoint(path.parents)]


def write_package(root: Path, files: Iterable[PurePosixPath], target: Path) -> int:
    """Write a zip whose bytes depend on the files alone, so that an unchanged tree is uploaded once.

    Args:
        root: the working tree.
        files: as :func:`files_to_send` gives them.
        target: file to write.

    Returns:
        How many files it holds.

    Raises:
        UsageError: the files are larger than :data:`MAX_BYTES`.
    """
    sizes = {path: (root / path).stat().st_size for path in files}
    if (total := sum(sizes.values())) > MAX_BYTES:
        raise UsageError(_too_large(root, sizes, total))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as package:
        for path in sizes:
            entry = zipfile.ZipInfo(str(path), _EPOCH_OF_ZIP)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if os.access(root / path, os.X_OK) else 0o644) << 16
            package.writestr(entry, (root / path).read_bytes())
    return len(sizes)


def _too_large(root: Path, sizes: dict[PurePosixPath, int], total: int) -> str:
    places: dict[str, int] = {}
    for path, size in sizes.items():
        top = str(path.parents[-2]) + "/" if len(path.parents) > 1 else str(path)
        places[top] = places.get(top, 0) + size
    largest = sorted(places, key=lambda place: -places[place])[:3]
    named = ", ".join(f"{place} ({places[place] >> 20} MiB)" for place in largest)
    return (
        f"{root} holds {total >> 20} MiB to send, more than {MAX_BYTES >> 20} MiB; most of it in {named}. Leave out "
        f"what the job does not need with --exclude, and put data on storage that the cluster reaches"
    )


def _listed_by_git(root: Path) -> list[PurePosixPath] | None:
    """None outside of a repository, or without git."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        run = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return [PurePosixPath(name) for name in os.fsdecode(run.stdout).split("\0") if name]


def _walk(root: Path, unwanted: re.Pattern[str]) -> Iterator[PurePosixPath]:
    for folder, folders, names in os.walk(root):
        here = PurePosixPath(os.path.relpath(folder, root))
        folders[:] = [name for name in folders if not _matches(here / name, unwanted)]
        yield from (here / name for name in names if (root / here / name).is_file())


def _matches(path: PurePosixPath, unwanted: re.Pattern[str]) -> bool:
    """Whether one of its names matches, or it from the root, or a folder that holds it."""
    return any(map(unwanted.match, (*path.parts, str(path), *map(str, path.parents[:-1]))))


def _is_product(root: Path, path: PurePosixPath) -> bool:
    return any(path.name == name and (root / path.parent / beside).exists() for name, beside in _PRODUCTS)
