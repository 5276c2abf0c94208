"""Evaluation: pure functions from a table of predictions to metrics, worst errors and the data of curves.

It never sees a model, so it gives the same numbers whoever made the predictions and however many workers did.
"""

from __future__ import annotations

from xmodal_dist.evaluate.multiclass import evaluate_predictions
from xmodal_dist.evaluate.multilabel import evaluate_label_sets
from xmodal_dist.evaluate.predictions import SUBSET_PREFIX, Evaluation, Mistake, subset_column

__all__ = [
    "SUBSET_PREFIX",
    "Evaluation",
    "Mistake",
    "evaluate_label_sets",
    "evaluate_predictions",
    "subset_column",
]
