"""Hyperparameter search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from xmodal_dist import config as configuration
from xmodal_dist import runtime, storage
from xmodal_dist.api.evaluation import evaluate
from xmodal_dist.api.files import write_json
from xmodal_dist.api.reports import EVALUATIONS
from xmodal_dist.bundle import load_bundle
from xmodal_dist.errors import UsageError
from xmodal_dist.pipeline.fit import used_fields
from xmodal_dist.report import search as search_page
from xmodal_dist.report.search import SearchedTrial
from xmodal_dist.train.log import read_epochs
from xmodal_dist.tune.importance import importances
from xmodal_dist.tune.ledger import IDENTITY_NAME, RESULT_NAME, read_ledger, run_of, running_trials
from xmodal_dist.tune.run import RunSettings

if TYPE_CHECKING:
    from xmodal_dist.tune.search import SearchResult

__all__ = ["show_search", "tune"]

_BEST_NAME = "best.yaml"
_TEST_NAME = "test.json"
_TESTED = ("accuracy", "mean_average_precision", "micro_f1", "macro_f1", "rows")


def tune(
    data: str,
    output: str,
    *,
    config: str | None = None,
    set: Sequence[str] = (),
    trials: int | None = None,
    budget_minutes: float | None = None,
    num_workers: int | None = None,
    repeat_seeds: int | None = None,
    resume: bool = False,
) -> SearchResult:
    """Search the settings of a training on its validation split, make the best one's bundle, and test that once.

    Args:
        data: the dataset.
        output: directory to write.
        config: YAML file of settings; its section ``search`` says what is searched and how.
        set: overrides like ``search.scheduler=none``.
        trials: how many; None takes the settings'.
        budget_minutes: no trial begins later; None takes the settings'.
        num_workers: DDP workers of each trial; None takes the settings', by default 1.
        repeat_seeds: seeds that the best are trained with; None takes the settings'.
        resume: go on with the search in ``output``.
    """
    from xmodal_dist.tune.live import LiveTable
    from xmodal_dist.tune.search import load_searchable, search, settle  # Ray Tune takes seconds to import

    data, output = storage.absolute(data), storage.absolute(output)
    given = {
        "search.trials": trials,
        "search.budget_minutes": budget_minutes,
        "search.repeat_seeds": repeat_seeds,
        "train.num_workers": num_workers,
    }
    overrides = [*set, *(f"{name}={value}" for name, value in given.items() if value is not None)]
    settings = configuration.load(config, overrides)
    manifest = load_searchable(data)
    kinds = {field.name: field.kind for field in used_fields(manifest, settings.fields)}
    train = settings.train.for_task(manifest.task)
    run = RunSettings(settings.fields, settings.model, train, settings.pipeline, kinds)
    searched = settle(run, settings.search)  # mistakes are told before a cluster is started
    several = (settings.train.num_workers or 1) > 1
    # What a killed nested trainer held is found through the dashboard's State API.
    with runtime.connect(dashboard=several), LiveTable(searched, run.train) as table:
        result = search(data, output, run, searched, resume=resume, watcher=table)
    # JSON is YAML, but for numbers like 1e-05, which YAML takes for words; validation makes numbers of them again.
    best = [f"{name}={json.dumps(value)}" for name, value in result.best.values.items()]
    chosen = configuration.load(config, [*overrides, *best, f"train.seed={result.best.seed}"])
    storage.write_bytes(storage.join(output, _BEST_NAME), configuration.dump_changed(chosen).encode())
    if "test" in manifest.splits and manifest.splits["test"].rows:
        _test_once(result, data)
    _write_page(output)
    return result


def show_search(output: str) -> dict[str, Any]:
    """The state of a search, under way or ended, from its files; also writes its page anew.

    Args:
        output: directory of the search.

    Returns:
        ``trials``, the lines of its table; ``running``, the numbers of those without one; and ``result``, the content
        of result.json, None while it goes on; ``test``, the figures of the test split; ``metric``,
        what is optimised; ``importance``, the share of each setting.

    Raises:
        UsageError: there is no search.
    """
    return _write_page(storage.absolute(output))


def _test_once(result: SearchResult, data: str) -> None:
    """Evaluate the chosen bundle on the test split; a search that is resumed after its end does not look again."""
    place, fingerprint = storage.join(result.output, _TEST_NAME), load_bundle(result.bundle).fingerprint
    known = _read_json(place)
    if known is None or known["bundle"] != fingerprint:
        metrics = evaluate(result.bundle, data, storage.join(result.output, EVALUATIONS, "test"))
        figures = {name: metrics[name] for name in _TESTED if name in metrics}
        write_json(place, {"bundle": fingerprint, **figures})


def _write_page(output: str) -> dict[str, Any]:
    """Write report.html of what there is by now, and return what it is made from."""
    records, result = read_ledger(output), _read_json(storage.join(output, RESULT_NAME))
    identity = _read_json(storage.join(output, IDENTITY_NAME))
    if identity is None:
        raise UsageError(f"{output!r} holds no search: expected a directory that xmodal tune has written")
    test, running = _read_json(storage.join(output, _TEST_NAME)), running_trials(output, records)
    trials = []
    for number in sorted([*records, *running]):
        record = asdict(records[number]) if number in records else {}
        trials.append(SearchedTrial(number, record, read_epochs(run_of(output, number))))
    metric, space = identity["metrics"][0], identity["search"]["space"]
    known = [r for r in records.values() if r.state != "failed" and r.metrics]
    dimensions = {n: {k: v for k, v in d.items() if v is not None} for n, d in space.items()}
    reached = [r.metrics[metric] for r in known]
    importance = importances(dimensions, [r.values for r in known], reached, [r.epochs for r in known])
    best = storage.join(output, _BEST_NAME)
    best_yaml = storage.read_text(best) if result and storage.exists(best) else ""
    name = output.rstrip("/").rpartition("/")[2]
    page = search_page.render(name, trials, identity, result, importance, best_yaml, test)
    storage.write_bytes(storage.join(output, "report.html"), page.encode())
    return {
        "metric": metric,
        "trials": [asdict(record) for record in records.values()],
        "running": running,
        "importance": importance,
        "result": result,
        "test": test,
    }


def _read_json(path: str) -> dict[str, Any] | None:
    return dict(json.loads(storage.read_text(path))) if storage.exists(path) else None
