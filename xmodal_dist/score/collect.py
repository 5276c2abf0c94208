"""Collect garbage of a finished run: what attempts and drivers left behind, and no manifest names."""

from __future__ import annotations

from typing import NamedTuple

from xmodal_dist import storage
from xmodal_dist.errors import UsageError
from xmodal_dist.score import ledger
from xmodal_dist.score.commit import COMMITS, DATA, QUARANTINE

__all__ = ["Collected", "collect_garbage"]


class Collected(NamedTuple):
    """Files removed, and their bytes."""

    files: int
    bytes: int


def collect_garbage(output: str) -> Collected:
    """Remove every file below the output's folders that its newest manifest does not name.

    Those are files of attempts that lost against another, marks of attempts that died, drivers' receipts, quarantine
    that a retry replaced, and half-written temporary files.

    Raises:
        UsageError: not a finished run: workers may still be about to name the files.
    """
    output = storage.absolute(output)
    manifest = ledger.load_manifest(output)
    if manifest is None:
        raise UsageError(
            f"{output!r} has no {ledger.manifest_name(1)}: only a finished run can be cleaned; give its command again"
        )
    known = set(ledger.load_files(output, manifest)["path"].to_pylist())
    sizes = {
        path: size
        for folder in (DATA, COMMITS, QUARANTINE, ledger.ATTEMPTS, ledger.RECEIPTS)
        for path, size in storage.list_sizes(storage.join(output, folder)).items()
        if path[path.rindex(f"/{folder}/") + 1 :] not in known
    }
    storage.delete_many(list(sizes))
    return Collected(len(sizes), sum(sizes.values()))
