"""Training, finding its learning rate, and comparing what was trained."""

from __future__ import annotations

import json
from collections.abc import Sequence

from xmodal_dist import config as configuration
from xmodal_dist import runtime, storage
from xmodal_dist.api.evaluation import EVALUATIONS
from xmodal_dist.errors import UsageError
from xmodal_dist.report import runs as runs_page
from xmodal_dist.report import sweep as sweep_page
from xmodal_dist.report import training as training_page
from xmodal_dist.train.find_lr import RateSweep, find_learning_rate
from xmodal_dist.train.launch import TrainResult, launch
from xmodal_dist.train.log import read_metrics

__all__ = ["find_lr", "report", "train"]


def train(
    data: str,
    output: str,
    *,
    config: str | None = None,
    set: Sequence[str] = (),
    num_workers: int | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a classifier on a packed dataset.

    Args:
        data: the dataset.
        output: run directory to write.
        config: YAML file of settings; none takes the defaults.
        set: overrides like ``train.epochs=20``.
        num_workers: DDP workers; None takes the settings'.
        resume: continue the run in ``output``.
    """
    run = storage.absolute(output)
    overrides = [*set, *([f"train.num_workers={num_workers}"] if num_workers is not None else [])]
    settings = configuration.load(config, overrides)
    with runtime.connect():
        result = launch(
            storage.absolute(data),
            run,
            fields=settings.fields,
            model=settings.model,
            train=settings.train,
            pipeline=settings.pipeline,
            resume=resume,
        )
    goodput = json.loads(storage.read_text(storage.join(run, "goodput.json")))
    page = training_page.render(run, read_metrics(run), goodput, None, settings.model_dump(mode="json"))
    storage.write_bytes(storage.join(run, "report.html"), page.encode())
    return result


def find_lr(
    data: str,
    output: str,
    *,
    config: str | None = None,
    set: Sequence[str] = (),
    steps: int = 100,
    lowest: float = 1e-5,
    highest: float = 1.0,
) -> RateSweep:
    """Look for a learning rate: train for some steps at a rising one, in this process and without Ray.

    Args:
        data: the dataset.
        output: directory to write: find_lr.json, report.html.
        config: YAML file of settings; none takes the defaults.
        set: overrides like ``train.batch_size=128``.
        steps: of the sweep.
        lowest: rate of the first step.
        highest: rate of the last step.
    """
    output, settings = storage.absolute(output), configuration.load(config, set)
    found = find_learning_rate(
        storage.absolute(data),
        fields=settings.fields,
        model=settings.model,
        train=settings.train,
        pipeline=settings.pipeline,
        num_steps=steps,
        lowest=lowest,
        highest=highest,
    )
    content = json.dumps(found._asdict(), indent=1) + "\n"
    storage.write_bytes(storage.join(output, "find_lr.json"), content.encode())
    page = sweep_page.render(data, found._asdict(), settings.model_dump(mode="json"))
    storage.write_bytes(storage.join(output, "report.html"), page.encode())
    return found


def report(runs: Sequence[str], output: str) -> str:
    """Write a page that compares training runs, and return its path.

    Args:
        runs: run directories.
        output: the HTML file to write.

    Raises:
        UsageError: a directory holds no run.
    """
    paths = [storage.absolute(path) for path in runs]
    page = runs_page.render([_run(path, name) for path, name in zip(paths, _names(paths), strict=True)])
    output = storage.absolute(output)
    storage.write_bytes(output, page.encode())
    return output


def _names(paths: Sequence[str]) -> list[str]:
    """As few last parts of the paths as tell them apart."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len({*names}) == len(names):
            return names
    raise UsageError(f"the same run is named twice: {', '.join(paths)}")


def _run(path: str, name: str) -> runs_page.Run:
    identity = storage.join(path, "run.json")
    if not storage.exists(identity):
        raise UsageError(f"{path!r} is not a training run: it has no run.json")
    goodput = storage.join(path, "goodput.json")
    fs, inner = storage.filesystem(storage.join(path, EVALUATIONS))
    found = sorted(fs.glob(f"{inner}/*/metrics.json")) if fs.exists(inner) else []
    return runs_page.Run(
        name=name,
        identity=json.loads(storage.read_text(identity)),
        lines=read_metrics(path),
        goodput=json.loads(storage.read_text(goodput)) if storage.exists(goodput) else {},
        evaluations={str(file).split("/")[-2]: json.loads(fs.cat_file(file)) for file in found},
    )
