"""Evaluation: pure functions from a table of predictions to metrics, worst errors and the data of curves.

It never sees a model, so it gives the same numbers whoever made the predictions and however many workers did.
"""

from __future__ import annotations

from xmodal_dist.evaluate.multiclass import (
    SUBSET_PREFIX,
    Evaluation,
    Mistake,
    evaluate_predictions,
    subset_column,
)
from xmodal_dist.evaluate.multilabel import evaluate_label_sets

__all__ = [
    "SUBSET_PREFIX",
    "Evaluation",
    "Mistake",
    "evaluate_label_sets",
    "evaluate_predictions",
    "subset_column",
]
