"""How a side (a program under test) talks to the harness. Standard library only: peers import this and nothing else.

A side is started as ``python -m benchmarks.peers.NAME REQUEST`` with a JSON object and does::

    asked = request()
    ...                         # imports, start-up, warm-up: not counted
    with measured("uint8"):     # the harness reads the processor time of the whole process tree here
        work()                  # and here
    finish({"ids": [...]})      # anything JSON; what the harness compares between sides

Both readings are taken by the harness while the side waits, so a side needs no measuring code of its own. The messages
go over two pipes whose numbers are in the environment: standard output stays free for whatever libraries print.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

__all__ = ["PIPES", "finish", "measured", "request", "serve_batches"]

PIPES = "XMODAL_BENCH_PIPES"
"""Environment variable ``READ,WRITE``: the file descriptors of the acknowledgements and of the messages."""

_VERSIONS_OF = (
    "daft",
    "numpy",
    "pillow",
    "pyarrow",
    "ray",
    "simplejpeg",
    "torch",
    "webdataset",
)


def request() -> dict[str, Any]:
    """What the harness asks of this side."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    return asked


@contextlib.contextmanager
def measured(region: str) -> Iterator[None]:
    """Count the block; a side may have several regions, each with a name of its own."""
    _tell({"event": "begin", "region": region})
    yield
    _tell({"event": "end", "region": region})


def finish(result: dict[str, Any]) -> None:
    """Hand over the result and end."""
    _tell({"event": "result", "result": result, "versions": _versions()})


def serve_batches(
    prepare: Callable[[dict[str, Any]], Callable[[str, bool], Iterable[tuple[Sequence[str], Any]]]],
) -> None:
    """A side that hands over batches of records: warm up, then measure one whole pass, for each ending asked for.

    Args:
        prepare: makes, from the request, a function of (ending, warm) that starts a pass over the data (over a part of
            it if ``warm``) and yields (ids, pixels) of each batch; pixels are a numpy array or a torch tensor.

    Request keys: ``endings`` (list), ``keep`` (None, or a path prefix: ids and pixels of the warm part, for each
    ending, are saved there as ``PREFIX.ENDING.npz`` and nothing is measured).
    """
    asked = request()
    start_pass = prepare(asked)
    ids: dict[str, list[str]] = {}
    for ending in asked["endings"]:
        if asked["keep"]:
            _save(f"{asked['keep']}.{ending}.npz", list(start_pass(ending, True)))
            continue
        _drain(start_pass(ending, True))
        with measured(ending):
            ids[ending] = _drain(start_pass(ending, False))
    finish({"ids": ids})


def _drain(batches: Iterable[tuple[Sequence[str], Any]]) -> list[str]:
    ids: list[str] = []
    for batch_ids, _ in batches:
        ids.extend(str(i) for i in batch_ids)
    return ids


def _save(path: str, batches: list[tuple[Sequence[str], Any]]) -> None:
    import numpy as np  # Both environments have it; a measured run does not come here.

    ids = [str(i) for batch_ids, _ in batches for i in batch_ids]
    np.savez(path, ids=np.array(ids), pixels=np.concatenate([np.asarray(pixels) for _, pixels in batches]))


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _tell(message: dict[str, Any]) -> None:
    """Send a message and wait until the harness has taken it in."""
    acknowledged, messages = (int(number) for number in os.environ[PIPES].split(","))
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(messages, line) :]
    if os.read(acknowledged, 1) != b"\n":
        sys.exit("the harness has gone")
