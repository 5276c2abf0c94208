"""What came out: for every model its figures with intervals, every paired test, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from xmodal_dist import metrics
from xmodal_dist.baselines.statistics import LEVEL, RESAMPLES, bootstrap_intervals, holm, paired_test
from xmodal_dist.baselines.verdict import SIGNIFICANT, best_of, sentences

__all__ = ["Contender", "contest", "render_comparison"]


@dataclass(frozen=True)
class Contender:
    """A model that takes part.

    Attributes:
        name: unique.
        title: as a sentence names it.
        role: ``network``; ``network_single``, the network shown one field; ``baseline`` of one field; ``stack``.
        model: family, as ``--baselines`` names it.
        fields: what it sees.
        choice: settings that were chosen on the validation split.
        val_accuracy: there; None where nobody looked.
        fit_cpu_s: CPU-seconds of choosing and fitting; None where unknown.
        note: what there is to know about it.
    """

    name: str
    title: str
    role: Literal["network", "network_single", "baseline", "stack"]
    model: str
    fields: tuple[str, ...]
    choice: dict[str, Any] = field(default_factory=dict)
    val_accuracy: float | None = None
    fit_cpu_s: float | None = None
    note: str = ""


def contest(
    contenders: Sequence[Contender],
    truth: NDArray[np.int64],
    by_model: Mapping[str, NDArray[np.int64]],
    num_classes: int,
) -> dict[str, Any]:
    """Compare models on the same rows.

    Args:
        contenders: exactly one of them of role ``network``.
        truth: [n] class index, n >= 1.
        by_model: name -> [n] class index.
        num_classes: C.

    Returns:
        JSON-able: ``models``, the most accurate first, ``comparisons``, ``verdict`` (sentences), and how it was done.
    """
    models = [_entry(c, truth, by_model[c.name], num_classes) for c in contenders]
    models.sort(key=lambda entry: (-entry["accuracy"], -entry["macro_f1"], entry["name"]))
    right = {name: predicted == truth for name, predicted in by_model.items()}
    comparisons = []
    for first, second in _pairs(models):
        paired = paired_test(right[first], right[second])
        comparisons.append({"first": first, "second": second, **paired._asdict()})
    for entry, p in zip(comparisons, holm([c["p"] for c in comparisons]), strict=True):
        entry |= {"p_holm": p, "significant": p < SIGNIFICANT}
    return {
        "test": f"McNemar, exact conditional mid-p, two-sided; Holm over {len(comparisons)} comparisons",
        "interval": f"percentile bootstrap over rows, {RESAMPLES} resamples, level {LEVEL}",
        "models": models,
        "comparisons": comparisons,
        "verdict": sentences(models, comparisons, len(truth)),
    }


def render_comparison(result: Mapping[str, Any]) -> Iterator[Table | str]:
    """The content of ``comparison.json`` for a terminal: a table of the models, then the verdict."""
    table = Table(
        "model", "accuracy", "95 %", "macro recall", "macro F1", "fit CPU-s", box=None, pad_edge=False
    )
    for model in result["models"]:
        low, high = model["accuracy_interval"]
        figures = (f"{model[name]:.4f}" for name in ("macro_recall", "macro_f1"))
        cpu_s = "-" if model["fit_cpu_s"] is None else f"{model['fit_cpu_s']:.1f}"
        table.add_row(model["title"], f"{model['accuracy']:.4f}", f"{low:.3f} to {high:.3f}", *figures, cpu_s)
    yield table
    yield from result["verdict"]


def _entry(
    contender: Contender, truth: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int
) -> dict[str, Any]:
    summary = metrics.from_confusion(metrics.confusion_matrix(truth, predicted, num_classes))
    intervals = bootstrap_intervals(truth, predicted, num_classes)
    figures = {name: summary[name] for name in intervals}
    ends = {f"{name}_interval": list(interval) for name, interval in intervals.items()}
    return {
        "name": contender.name,
        "title": contender.title,
        "role": contender.role,
        "model": contender.model,
        "fields": list(contender.fields),
        **figures,
        **ends,
        "choice": contender.choice,
        "val_accuracy": contender.val_accuracy,
        "fit_cpu_s": contender.fit_cpu_s,
        "note": contender.note,
    }


def _pairs(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The network with every other, and the best stack with the best model of a single field."""
    network = next(m["name"] for m in models if m["role"] == "network")
    pairs = [(network, m["name"]) for m in models if m["name"] != network]
    stacks, singles = ([m for m in models if m["role"] == role] for role in ("stack", "baseline"))
    if stacks and singles:
        pairs.append((best_of(stacks)["name"], best_of(singles)["name"]))
    return pairs
