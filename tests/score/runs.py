"""A whole scoring run in this process, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xmodal_dist.score import ledger
from xmodal_dist.score.formats import ScoreManifest
from xmodal_dist.score.job import prepare
from xmodal_dist.score.predictor import Predictor
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.tally import Tally
from xmodal_dist.score.verify import verify_scoring
from xmodal_dist.score.worker import UnitScorer

__all__ = ["score_here"]


def score_here(bundle: str, inputs: Sequence[str], output: Path, **settings: Any) -> ScoreManifest:
    """Score on the CPU, and verify the output."""
    run = prepare(bundle, inputs, str(output), ScoreSettings.model_validate(settings))
    ledger.open_run(str(output), run.identity, run.plan)
    tally = Tally(run.plan, run.identity.digest)
    scorer = UnitScorer(run.job, Predictor(run.model, torch.device("cpu"), run.job.settings))
    for unit in run.plan:
        tally.add(scorer.score(unit).part)
    manifest = ledger.finalise(str(output), run.identity, tally, run.model.classes, run.job.schema)
    assert verify_scoring(str(output)) == (0, 0, [])
    return manifest
