"""Training, and looking for a learning rate."""

from __future__ import annotations

from collections.abc import Sequence

from xmodal_dist import config as configuration
from xmodal_dist import runtime, storage
from xmodal_dist.api.files import write_json
from xmodal_dist.api.reports import write_run_page
from xmodal_dist.report import sweep as sweep_page
from xmodal_dist.train.find_lr import RateSweep, find_learning_rate
from xmodal_dist.train.launch import TrainResult, launch

__all__ = ["find_lr", "train"]


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
    write_run_page(run)
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
    write_json(storage.join(output, "find_lr.json"), found._asdict())
    page = sweep_page.render(data, found._asdict(), settings.model_dump(mode="json"))
    storage.write_bytes(storage.join(output, "report.html"), page.encode())
    return found
