"""Our side of the scoring benchmark: the real job under Ray, or the same units in one process.

Request keys: ``bundle``; ``few`` and ``many``, files to read; ``folder``, where outputs are written; ``settings``, the
configuration's section ``score``; ``placement``, ``ray`` or ``local``. Result: as ``benchmarks/peers/scoring.py``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.ours.reading import NUM_CPUS, session
from benchmarks.protocol import finish, measured, request
from xmodal_dist.score import ledger
from xmodal_dist.score.commit import DATA
from xmodal_dist.score.job import prepare, score
from xmodal_dist.score.predictor import Predictor
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.score.tally import Tally
from xmodal_dist.score.worker import UnitScorer

__all__ = ["main"]


def main(asked: dict[str, Any]) -> None:
    """Score few records to warm up, then measure a run over few and one over many."""
    settings = ScoreSettings.model_validate(asked["settings"])

    def run(name: str, output: str) -> None:
        if asked["placement"] == "ray":
            score(asked["bundle"], asked[name], output, settings, num_workers=NUM_CPUS)
        else:
            _score_here(asked["bundle"], asked[name], output, settings)

    run("few", os.path.join(asked["folder"], "warm"))
    result = {}
    for name in ("few", "many"):
        output = os.path.join(asked["folder"], name)
        result[name] = os.path.join(output, DATA)
        with measured(name):
            run(name, output)
    finish(result)


def _score_here(bundle: str, inputs: Sequence[str], output: str, settings: ScoreSettings) -> None:
    """A whole run in this process: one worker, without Ray."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    run = prepare(bundle, inputs, output, settings)
    ledger.open_run(output, run.identity, run.plan)
    predictor = Predictor(run.model, device, settings)
    predictor.warm_up()
    tally = Tally(run.plan, run.identity.digest)
    scorer = UnitScorer(run.job, predictor)
    for unit in run.plan:
        tally.add(scorer.score(unit).part)
    ledger.finalise(output, run.identity, tally, run.model.classes, run.job.schema)


if __name__ == "__main__":
    with session(request()["placement"]):
        main(request())
