"""The commands as Python functions, with the same names and arguments: each settles settings and joins the rooms."""

from __future__ import annotations

from xmodal_dist.api.comparison import compare
from xmodal_dist.api.data import doctor, inspect, pack, verify
from xmodal_dist.api.evaluation import calibrate, evaluate, evaluation_path, explain, run_page
from xmodal_dist.api.planning import plan
from xmodal_dist.api.reports import report
from xmodal_dist.api.scoring import gc, retry, score
from xmodal_dist.api.training import find_lr, train
from xmodal_dist.api.tuning import show_search, tune

__all__ = [
    "calibrate",
    "compare",
    "doctor",
    "evaluate",
    "evaluation_path",
    "explain",
    "find_lr",
    "gc",
    "inspect",
    "pack",
    "plan",
    "report",
    "retry",
    "run_page",
    "score",
    "show_search",
    "train",
    "tune",
    "verify",
]
