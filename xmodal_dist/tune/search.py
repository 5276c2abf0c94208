"""A search from its settings to a bundle: plan, run trials, repeat the best with other seeds, choose. Read this first.

The validation split alone decides. The first trial has the run's own settings and is never stopped early; others take
their place only where they are better beyond chance.
"""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

from xmodal_dist import storage
from xmodal_dist.dataset.manifest import Manifest, load_manifest
from xmodal_dist.errors import DataError
from xmodal_dist.pipeline.fit import fit_fields
from xmodal_dist.task import task_of
from xmodal_dist.tune.algorithms import resolve_algorithm
from xmodal_dist.tune.choice import Choice, Evidence, best_seed, choose, own_rival, summarise
from xmodal_dist.tune.engine import Search, Watcher, run_trials
from xmodal_dist.tune.evidence import weigh
from xmodal_dist.tune.final import drop_cache, make_bundle, promote, with_cache
from xmodal_dist.tune.ledger import RESULT_NAME, Ledger, TrialRecord
from xmodal_dist.tune.plan import Plan
from xmodal_dist.tune.resources import cluster_nodes, plan_needs
from xmodal_dist.tune.run import RunSettings
from xmodal_dist.tune.schedulers import check_population
from xmodal_dist.tune.settings import SearchSettings
from xmodal_dist.tune.space import Space, default_space
from xmodal_dist.tune.trial import TrialBase

__all__ = ["SearchResult", "load_searchable", "search", "settle"]

_POPULATIONS = {"hyperband": 32, "pbt": 8}
"""Trials of schedulers that compare them with each other, where nobody says how many."""


class SearchResult(NamedTuple):
    """Where the results are.

    Attributes:
        output: directory of the search.
        bundle: the best trial's model.
        best: its record.
        choices: the best first.
        summary: content of result.json: counts, costs, and what was chosen.
    """

    output: str
    bundle: str
    best: TrialRecord
    choices: tuple[Choice, ...]
    summary: dict[str, Any]


def load_searchable(dataset: str) -> Manifest:
    """The manifest of a dataset that can be searched on.

    Raises:
        DataError: it has no training or no validation records.
    """
    manifest = load_manifest(dataset)
    for split in ("train", "val"):
        if not (split in manifest.splits and manifest.splits[split].rows):
            raise DataError(
                f"{dataset} has no {split} records, and a search chooses on validation: pack it with --split, or "
                f"--split-ratio 0.8,0.1,0.1"
            )
    return manifest


def search(
    dataset: str,
    output: str,
    run: RunSettings,
    settings: SearchSettings,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> SearchResult:
    """Search inside a Ray session that is already there.

    Args:
        dataset: path or URI of the dataset; it needs a val split.
        output: directory to write; on several nodes, one that all of them reach.
        run: settings that trials change, those of its training with the task's defaults.
        settings: of the search.
        resume: go on with the search that is in ``output``.
        watcher: shows what goes on.

    Raises:
        UsageError: settings do not fit the data or each other, or not one trial fits the cluster.
        SpecDiffersError: the search to resume was another.
        RunAgainError: it was interrupted.
        XmodalError: every trial failed.
    """
    began_s = time.time()
    here = _prepare(dataset, output, run, settings, resume)
    base, ledger, watch = here.base, here.ledger, watcher or (lambda running, records: None)
    plan = Plan(here.space, here.settings, base.run, base.metrics, ledger)
    budget = here.settings.budget_minutes
    deadline_s = None if budget is None else began_s + 60 * budget
    if plan.has_next:
        run_trials(here, plan.next, plan.tell, watch, deadline_s)
    if queue := plan.repeats():
        last = here._replace(settings=here.settings.model_copy(update={"scheduler": "none"}))
        run_trials(last, lambda: queue.pop(0) if queue else None, lambda _: None, watch, None)
    choices, evidence = _choose(base, ledger)
    best = best_seed(choices[0], base.metrics)
    if evidence is None and here.settings.final == "promote":
        promote(base, [best])  # weighing the evidence takes the bundles of both
    bundle = make_bundle(base, here.settings.final, best)
    drop_cache(base)
    summary = summarise(ledger.records, here.space, base, choices, evidence, best, time.time() - began_s)
    payload = json.dumps(summary, indent=1) + "\n"
    storage.write_bytes(storage.join(output, RESULT_NAME), payload.encode())
    return SearchResult(output, bundle, best, choices, summary)


def settle(run: RunSettings, settings: SearchSettings) -> SearchSettings:
    """The settings of a search with what was left open, all of it checked; needs no Ray session.

    Raises:
        UsageError: they do not fit the run's or each other.
    """
    settings = resolve_algorithm(settings)
    trials = settings.trials or _POPULATIONS.get(settings.scheduler)
    settings = settings.model_copy(update={"space": settings.space or default_space(run), "trials": trials})
    Space(settings.space).check(run)
    return settings


def _prepare(dataset: str, output: str, run: RunSettings, settings: SearchSettings, resume: bool) -> Search:
    """Check everything that can be checked before the first trial, and make the directory ours."""
    manifest = load_searchable(dataset)
    run, settings = with_cache(run, output), settle(run, settings)
    space = Space(settings.space)
    needs = plan_needs(settings, run.pipeline, run.train.num_workers or 1, cluster_nodes())
    run.train.check(needs.num_workers, run.pipeline.window_rows)
    specs = fit_fields(dataset, manifest, run.fields, run.train.fit_rows)
    metrics = settings.optimised(run.train.monitor)
    for name in metrics:
        if name != "parameters":
            run.train.model_copy(update={"monitor": name}).for_task(manifest.task)
    base = TrialBase(output, dataset, manifest, run, specs, metrics, needs)
    if settings.scheduler == "pbt":
        check_population(base, space)
    identity = {
        "dataset": manifest.fingerprint,
        "run": run.identity(),
        "search": settings.identity(),
        "metrics": metrics,
    }
    return Search(base, settings, space, Ledger(output, identity, resume))


def _choose(base: TrialBase, ledger: Ledger) -> tuple[tuple[Choice, ...], Evidence | None]:
    """All settings, the best first: the run's own, unless others are better beyond chance."""
    choices, metric = choose(ledger.records.values(), base.metrics), base.metrics[0]
    own = own_rival(choices, metric)
    if own is None:
        return choices, None
    said = promote(base, [*choices[0].trials, *own.trials])
    evidence = weigh(choices[0], own, said, metric, task_of(base.manifest.task))
    if not evidence.is_better:
        choices = (own, *(choice for choice in choices if choice is not own))
    return choices, evidence
