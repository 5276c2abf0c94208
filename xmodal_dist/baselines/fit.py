"""All classical models of a comparison: fitted to the train split, every choice made on the validation split."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal_dist.baselines.features import recipe_of
from xmodal_dist.baselines.models import Baseline, FieldModel, Split, fit_field_model
from xmodal_dist.baselines.rows import Rows
from xmodal_dist.baselines.stack import Stack, fit_stack, stratified_folds
from xmodal_dist.baselines.views import Preparation, Views, prepare
from xmodal_dist.modalities.fields import FieldSpec

__all__ = ["Classical", "fit_classical"]


@dataclass(frozen=True)
class Classical:
    """Everything that was fitted.

    Attributes:
        preparations: of the features, by field.
        models: of single fields.
        stacks: of several.
        features: by field what its features are: ``kind``, ``what``, ``columns``, ``dense_columns``, ``cpu_s``.
        skipped: what was left out: ``model``, ``field``, ``reason``.
    """

    preparations: dict[str, Preparation]
    models: tuple[FieldModel, ...]
    stacks: tuple[Stack, ...]
    features: dict[str, dict[str, Any]]
    skipped: list[dict[str, str]]

    def predict(self, rows: Rows) -> dict[str, NDArray[np.int64]]:
        """Class index of each row, by name of the model."""
        views = {field: _views(p, rows, field) for field, p in self.preparations.items()}
        scores = {m.name: m.scores(views[m.field], rows.present[m.field]) for m in self.models}
        single = {name: values.argmax(axis=1) for name, values in scores.items()}
        return single | {
            s.name: s.predict([scores[m.name] for m in s.members], rows.present) for s in self.stacks
        }


def fit_classical(
    specs: Sequence[FieldSpec],
    train: Rows,
    val: Rows | None,
    baselines: Sequence[Baseline],
    num_classes: int,
    say: Callable[[str], None],
) -> Classical:
    """Fit every baseline to every field, and stack them.

    Args:
        specs: the fields.
        train: what is fitted to.
        val: what choices are made on; None takes defaults.
        baselines: which.
        num_classes: C.
        say: told what is being done.
    """
    folds = stratified_folds(train.labels) if len(specs) > 1 else np.zeros(len(train.labels), dtype=np.int64)
    preparations: dict[str, Preparation] = {}
    models: list[FieldModel] = []
    features: dict[str, dict[str, Any]] = {}
    skipped: list[dict[str, str]] = []
    for spec in specs:
        if not train.present[spec.name].any():
            reason = "no record of the train split has the field"
            skipped.extend({"model": b.name, "field": spec.name, "reason": reason} for b in baselines)
            continue
        began = time.process_time()
        preparation = preparations[spec.name] = prepare(_own(train, spec.name))
        split = _split(preparation, train, spec.name)
        assert split.views is not None
        features[spec.name] = _described(spec, split.views, time.process_time() - began)
        check = None if val is None else _split(preparation, val, spec.name)
        for baseline in baselines:
            if getattr(split.views, baseline.view) is None:
                reason = "its features can be negative"
                skipped.append({"model": baseline.name, "field": spec.name, "reason": reason})
                continue
            say(f"fitting {baseline.title} to {spec.name}")
            models.append(fit_field_model(baseline, spec.name, split, check, folds, num_classes))
    stacks = []
    for name, title, members in _teams(models, baselines):
        say(f"fitting {title}")
        checked = None if val is None else (val.labels, val.present)
        stacks.append(fit_stack(name, title, members, (train.labels, train.present), checked))
    return Classical(preparations, tuple(models), tuple(stacks), features, skipped)


def _teams(
    models: Sequence[FieldModel], baselines: Sequence[Baseline]
) -> list[tuple[str, str, list[FieldModel]]]:
    """Stacks to fit, as name, title and members: one of each baseline, and one of each field's best on ``val``."""
    teams = [
        (f"{b.name}:stack", f"the stack of {b.title} models", [m for m in models if m.baseline is b])
        for b in baselines
    ]
    best: dict[str, FieldModel] = {}
    for model in models:
        known = best.get(model.field)
        if known is None or (model.val_accuracy or 0.0) > (known.val_accuracy or 0.0):
            best[model.field] = model
    if len(baselines) > 1:
        teams.append(("best:stack", "the stack of each field's best model", list(best.values())))
    return [team for team in teams if len(team[2]) > 1]


def _own(rows: Rows, field: str) -> dict[str, NDArray[Any]]:
    """Features of the records that have the field."""
    return {name: block[rows.present[field]] for name, block in rows.fields[field].items()}


def _views(preparation: Preparation, rows: Rows, field: str) -> Views | None:
    """None where no record has the field."""
    return preparation.views(_own(rows, field)) if rows.present[field].any() else None


def _split(preparation: Preparation, rows: Rows, field: str) -> Split:
    return Split(_views(preparation, rows, field), rows.labels, rows.present[field])


def _described(spec: FieldSpec, views: Views, cpu_s: float) -> dict[str, Any]:
    return {
        "kind": spec.settings.kind,
        "what": recipe_of(spec).words,
        "columns": int(views.linear.shape[1]),
        "dense_columns": int(views.dense.shape[1]),
        "cpu_s": cpu_s,
    }
