"""The demo: the main job from raw files to verified predictions, on data that comes with the dependencies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from xmodal_dist import api, runtime, storage
from xmodal_dist.errors import UsageError
from xmodal_dist.ingest.demo import write_demo_source

__all__ = ["run_demo"]

_OVERRIDES = ("train.epochs=12",)
_NUM_WORKERS = 2


def run_demo(output: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Make the source, pack, train with two workers, evaluate, score and verify below ``output``.

    Args:
        output: a new or empty directory.
        say: shows a line to the user.

    Returns:
        The test metrics.

    Raises:
        UsageError: ``output`` holds something.
    """
    root = storage.absolute(output)
    if storage.exists(root) and storage.list_files(root):
        raise UsageError(f"{root!r} already holds files; choose another --output, or remove it")
    place = {name: storage.join(root, name) for name in ("source", "dataset", "run", "scored")}
    began_s = time.monotonic()
    with _step(say, "make raw records: handwritten digits, DTMF tones in noise, noisy transcripts"):
        table = str(write_demo_source(place["source"], seed=0))
    with _step(say, f"xmodal pack {table} {place['dataset']}"):
        manifest = api.pack(table, place["dataset"])
        say(f"   {manifest.source_rows} records, fields: {', '.join(f.name for f in manifest.fields)}")
    with runtime.connect():
        with _step(
            say,
            f"xmodal train --data {place['dataset']} --output {place['run']} --num-workers {_NUM_WORKERS}",
        ):
            api.train(place["dataset"], place["run"], set=_OVERRIDES, num_workers=_NUM_WORKERS)
        bundle = storage.join(place["run"], "bundle")
        with _step(say, f"xmodal evaluate --bundle {bundle} --data {place['dataset']}"):
            metrics = api.evaluate(bundle, place["dataset"])
            _show_metrics(say, metrics)
        inputs = storage.join(place["dataset"], "data")
        with _step(say, f"xmodal score --bundle {bundle} --input {inputs} --output {place['scored']}"):
            scored = api.score(bundle, [inputs], place["scored"]).manifest
            say(f"   {scored.rows_in} records read = {scored.rows_ok} scored + {scored.rows_bad} quarantined")
    for name in ("dataset", "scored"):
        found = api.verify(place[name])
        say(
            f"verify {name}: lost={found.lost} duplicated={found.duplicated} failed_checks={len(found.failed_checks)}"
        )
    say(f"done in {time.monotonic() - began_s:.0f} s. Look at:")
    say(f"  report of the run  {storage.join(place['run'], 'report.html')}")
    say(f"  scoring report     {storage.join(place['scored'], 'report.html')}")
    say(f"  predictions        {storage.join(place['scored'], 'data')}")
    return metrics


def _show_metrics(say: Callable[[str], None], metrics: dict[str, Any]) -> None:
    say(
        f"   test accuracy {metrics['accuracy']:.4f}, macro F1 {metrics['macro_f1']:.4f}, on {metrics['rows']} records"
    )
    for name, values in metrics["per_subset"].items():
        if "+" not in name:
            say(f"   {name} alone {values['accuracy']:.4f}")


@contextmanager
def _step(say: Callable[[str], None], title: str) -> Iterator[None]:
    began_s = time.monotonic()
    say(f"-> {title}")
    yield
    say(f"   {time.monotonic() - began_s:.1f} s")
