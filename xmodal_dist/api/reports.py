"""Pages of runs, made anew from what lies in their directories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from xmodal_dist import storage
from xmodal_dist.errors import UsageError
from xmodal_dist.report import run as run_page
from xmodal_dist.report import runs as runs_page
from xmodal_dist.report.run import Run
from xmodal_dist.train.log import read_metrics

__all__ = ["DETAILS_NAME", "EVALUATIONS", "METRICS_NAME", "PAGE_NAME", "is_run", "report", "write_run_page"]

EVALUATIONS = "evaluation"
"""Folder of a run that holds its evaluations, by split."""

METRICS_NAME = "metrics.json"
DETAILS_NAME = "report.json"
PAGE_NAME = "report.html"
_IDENTITY_NAME = "run.json"


def report(runs: Sequence[str], output: str | None = None) -> str:
    """Write the page of a training run, or one that compares several, and return its path.

    Args:
        runs: run directories.
        output: the HTML file to write; None takes ``report.html`` of a single run, ``runs.html`` for several.

    Raises:
        UsageError: a directory holds no run, or one is named twice.
    """
    paths = [storage.absolute(path) for path in runs]
    if len(paths) == 1:
        return write_run_page(paths[0], output)
    page = runs_page.render([_read(path, name) for path, name in zip(paths, _names(paths), strict=True)])
    output = storage.absolute(output or "runs.html")
    storage.write_bytes(output, page.encode())
    return output


def is_run(path: str) -> bool:
    """Whether a training run lies in the directory."""
    return storage.exists(storage.join(path, _IDENTITY_NAME))


def write_run_page(run: str, output: str | None = None) -> str:
    """Write the one page of a run, by default into it, and return its path.

    Args:
        run: absolute path or URI of the run directory.
        output: the HTML file to write.
    """
    output = storage.absolute(output) if output else storage.join(run, PAGE_NAME)
    storage.write_bytes(output, run_page.render(_read(run, run)).encode())
    return output


def _names(paths: Sequence[str]) -> list[str]:
    """As few last parts of the paths as tell them apart."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len({*names}) == len(names):
            return names
    raise UsageError(f"the same run is named twice: {', '.join(paths)}")


def _read(path: str, name: str) -> Run:
    if not is_run(path):
        raise UsageError(f"{path!r} is not a training run: it has no {_IDENTITY_NAME}")
    config = storage.join(path, "config.yaml")
    evaluated = storage.list_files(storage.join(path, EVALUATIONS), ".json")
    return Run(
        name=name,
        identity=_json(path, _IDENTITY_NAME),
        lines=read_metrics(path),
        goodput=_json(path, "goodput.json"),
        evaluations=_of_splits(evaluated, METRICS_NAME),
        details=_of_splits(evaluated, DETAILS_NAME),
        config=storage.read_text(config) if storage.exists(config) else "",
        commands=_json(path, "environment.json").get("commands", ()),
    )


def _json(path: str, name: str) -> dict[str, Any]:
    """A document of a run; {} if it is not there."""
    file = storage.join(path, name)
    found: dict[str, Any] = json.loads(storage.read_text(file)) if storage.exists(file) else {}
    return found


def _of_splits(files: Sequence[str], name: str) -> dict[str, dict[str, Any]]:
    """Split -> content of the file of its evaluation."""
    found = (file.split("/") for file in files)
    return {parts[-2]: json.loads(storage.read_text("/".join(parts))) for parts in found if parts[-1] == name}
