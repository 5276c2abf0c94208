"""Scoring."""

from __future__ import annotations

from collections.abc import Sequence

from xmodal_dist import config as configuration
from xmodal_dist import runtime, storage
from xmodal_dist.report import scoring as scoring_page
from xmodal_dist.score import job as scoring
from xmodal_dist.score.collect import Collected, collect_garbage
from xmodal_dist.score.events import read_events

__all__ = ["gc", "retry", "score"]


def score(
    bundle: str,
    input: Sequence[str],
    output: str,
    *,
    config: str | None = None,
    set: Sequence[str] = (),
    num_workers: int | None = None,
) -> scoring.ScoreResult:
    """Score Parquet records with a bundle; run again to continue a run that was stopped.

    Args:
        bundle: the trained model.
        input: Parquet files, globs, folders, or packed datasets.
        output: directory to write.
        config: YAML file; its ``score`` section counts here.
        set: overrides like ``score.top_k=5``.
        num_workers: scoring workers; None takes one per GPU, or what the CPUs allow.
    """
    output = storage.absolute(output)
    settings = configuration.load(config, set).score
    inputs = [storage.absolute(path) for path in input]
    result = scoring.score(bundle, inputs, output, settings, num_workers, session=runtime.connect)
    _report_scoring(result)
    return result


def retry(
    output: str,
    *,
    bundle: str | None = None,
    config: str | None = None,
    set: Sequence[str] = (),
    num_workers: int | None = None,
) -> scoring.ScoreResult:
    """Score the rejected records of a finished scoring run again, and add what comes out to its output.

    Args:
        output: directory of the run.
        bundle: the run's bundle, if it is not where it was.
        config: YAML file; of its ``score`` section only what does not change the output counts.
        set: overrides like ``score.threads=2``.
        num_workers: scoring workers; None takes one per GPU, or what the CPUs allow.
    """
    settings = configuration.load(config, set).score
    result = scoring.retry(bundle, output, settings, num_workers, session=runtime.connect)
    _report_scoring(result)
    return result


def gc(output: str) -> Collected:
    """Remove the files of a finished scoring run that its manifest does not name."""
    return collect_garbage(output)


def _report_scoring(result: scoring.ScoreResult) -> None:
    manifest = result.manifest.model_dump(mode="json")
    events = read_events(result.output)
    page = scoring_page.render(manifest, events=events, drift=result.drift, goodput=result.goodput)
    storage.write_bytes(storage.join(result.output, "report.html"), page.encode())
