"""Trials of a search, by Ray Tune or one after the other in plain actors.

Request keys: ``dataset``; ``folder``, where runs are written; ``trials``; ``actors``; ``how``, ``search`` or ``loop``.
The measured region begins when every actor has done one trial. Result: ``losses``, each trial's training loss.
"""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

from benchmarks.protocol import finish, measured, request

_SPACE = {"train.learning_rate": {"loguniform": [1e-4, 1e-2]}}


def main(asked: dict[str, Any]) -> None:
    """All trials, in one way or the other."""
    from xmodal_dist import runtime
    from xmodal_dist.dataset.manifest import load_manifest
    from xmodal_dist.model.classifier import ModelSettings
    from xmodal_dist.pipeline.fit import fit_fields
    from xmodal_dist.pipeline.stream import PipelineSettings
    from xmodal_dist.train.settings import TrainSettings
    from xmodal_dist.tune.resources import plan_needs
    from xmodal_dist.tune.run import RunSettings
    from xmodal_dist.tune.settings import SearchSettings
    from xmodal_dist.tune.space import Space
    from xmodal_dist.tune.trial import TrialBase

    output, manifest = tempfile.mkdtemp(dir=asked["folder"]) + "/search", load_manifest(asked["dataset"])
    kinds = {field.name: field.kind for field in manifest.fields}
    pipeline = PipelineSettings(placement="local", cache_dir=output + "-cache")
    run = RunSettings({}, ModelSettings(width=64), TrainSettings(epochs=1, num_workers=1), pipeline, kinds)
    settings = SearchSettings.model_validate(
        {"space": _SPACE, "trials": asked["trials"], "algorithm": "random", "scheduler": "none"}
    )
    needs = plan_needs(settings, pipeline, 1, [{"CPU": float(asked["actors"])}])
    specs = fit_fields(asked["dataset"], manifest, {}, run.train.fit_rows)
    base = TrialBase(output, asked["dataset"], manifest, run, specs, ("accuracy",), needs)
    with runtime.connect(num_cpus=asked["actors"]):
        how = _search if asked["how"] == "search" else _loop
        finish({"losses": how(base, settings, Space(settings.space), asked["actors"])})


def _search(base: Any, settings: Any, space: Any, actors: int) -> list[float]:
    from xmodal_dist.tune.engine import Search, run_trials
    from xmodal_dist.tune.ledger import Ledger
    from xmodal_dist.tune.plan import Plan

    ledger = Ledger(base.output, {}, resume=False)
    plan = Plan(space, settings, base.run, base.metrics, ledger)
    region = contextlib.ExitStack()

    def watch(running: Any, records: Any) -> None:
        del running
        if len(records) == actors and not hasattr(watch, "begun"):
            watch.begun = True  # type: ignore[attr-defined]
            region.enter_context(measured("trials"))
        if len(records) == settings.trials:
            region.close()

    run_trials(Search(base, settings, space, ledger), plan.next, plan.tell, watch, None)
    return [record.metrics["loss"] for record in ledger.records.values()]


def _loop(base: Any, settings: Any, space: Any, actors: int) -> list[float]:
    import ray

    from xmodal_dist.tune.ledger import Ledger
    from xmodal_dist.tune.plan import Plan

    plan = Plan(space, settings, base.run, base.metrics, Ledger(base.output, {}, resume=False))
    every = [planned for planned in iter(plan.next, None)]
    actor_class: Any = ray.remote(num_cpus=1)(_Actor)
    pool = [actor_class.remote(base) for _ in range(actors)]
    losses = ray.get([a.train.remote([p]) for a, p in zip(pool, every[:actors], strict=True)])
    rest = every[actors:]
    with measured("trials"):
        losses += ray.get([actor.train.remote(rest[i::actors]) for i, actor in enumerate(pool)])
    return [loss for part in losses for loss in part]


class _Actor:
    """Trains one run after the other, with nobody asking."""

    def __init__(self, base: Any) -> None:
        self._base = base

    def train(self, every: list[Any]) -> list[float]:
        from xmodal_dist.train.loop import Worker
        from xmodal_dist.train.place import Place
        from xmodal_dist.tune.trial import trial_job

        losses = []
        for planned in every:
            worker = Worker(trial_job(self._base, planned), Place.alone(False, 2))
            worker.epoch()
            worker.close()
            losses.append(float(worker.progress.best_metrics["loss"]))
        return losses


if __name__ == "__main__":
    main(request())
