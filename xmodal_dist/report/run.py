"""The one page of a run, a pure function of what lies in its directory.

How it learned, what it is worth on every split that it was evaluated on, how fast it was, and with which settings and
on what it was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from xmodal_dist.report import environment, evaluation, training
from xmodal_dist.report.page import Card, flatten, percent, score, seconds
from xmodal_dist.report.page import render as render_page

__all__ = ["Run", "render"]

_VALIDATED = ("accuracy", "balanced_accuracy", "mean_average_precision", "micro_f1", "subset_accuracy")


@dataclass(frozen=True)
class Run:
    """A run as it is on disk.

    Attributes:
        name: for people; distinct.
        identity: content of ``run.json``: dataset fingerprint and settings.
        lines: of ``metrics.jsonl``.
        goodput: content of ``goodput.json``; {} while the run goes on.
        evaluations: split -> content of its ``metrics.json``.
        details: split -> content of its ``report.json``; none for evaluations of earlier releases.
        config: content of ``config.yaml``; "" for runs of earlier releases.
        commands: of ``environment.json``, the newest last; none for runs of earlier releases.
    """

    name: str
    identity: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    goodput: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: str = ""
    commands: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def best(self) -> Mapping[str, Any]:
        """The epoch whose weights were kept; {} before any."""
        return next((line for line in reversed(training.epochs_of(self.lines)) if line.get("kept")), {})

    @cached_property
    def headline(self) -> training.Headline:
        """The validation figure that it is known by."""
        return training.headline(self.lines)

    @property
    def is_validated(self) -> bool:
        """Whether its best epoch has that figure."""
        return self.best.get(self.headline.key) is not None

    @property
    def splits(self) -> list[str]:
        """The splits that it was evaluated on, the test split first."""
        return sorted(self.evaluations, key=lambda split: (split != "test", split))


def render(run: Run) -> str:
    """The page of one run, evaluated or not.

    Returns:
        One self-contained HTML page; the same bytes for the same run.
    """
    chapters = [
        evaluation.chapter(split, run.evaluations[split], run.details.get(split, {})) for split in run.splits
    ]
    workers = [line for line in run.lines if line["event"] == "start"]
    return render_page(
        "run",
        title=run.name.rpartition("/")[2],
        lead=_lead(run),
        run={"run": run.name},
        cards=_cards(run),
        nav=_nav(chapters),
        learning=training.learning(run.lines),
        best_epoch=run.best["epoch"] if run.is_validated else None,
        figures=_figures(run),
        chapters=chapters,
        speed=training.speed(run.lines, run.goodput) if run.goodput else None,
        environment=environment.facts_of_run(
            run.identity, run.commands, run.goodput, workers[-1]["workers"] if workers else ()
        ),
        evaluated={
            evaluation.split_title(split): environment.facts_of_evaluation(run.details[split])
            for split in run.splits
            if split in run.details
        },
        config=run.config,
        download=environment.download(run.config),
        settings={} if run.config else flatten(run.identity),
    )


def _nav(chapters: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Anchor and name of every chapter."""
    links = [("splits", "Results")] if chapters else []
    links.append(("learning", "Learning"))
    for place, found in enumerate(chapters):
        links.append((found["anchor"], found["title"]))
        if place == 0:
            links.append((f"{found['anchor']}-errors", "Worst errors"))
    return [*links, ("speed", "Speed"), ("configuration", "Configuration"), ("environment", "Environment")]


def _lead(run: Run) -> str:
    """What the run is and what it reached, in two sentences."""
    fields = list(run.identity.get("fields", {}))
    epochs = len(training.epochs_of(run.lines))
    what = " and ".join([", ".join(fields[:-1]), fields[-1]] if len(fields) > 1 else fields)
    text = f"A classifier of {what or 'records'}, trained for {epochs} epoch{'' if epochs == 1 else 's'}."
    if not run.splits:
        return text
    split = run.splits[0]
    found = evaluation.sentence(run.evaluations[split])
    return f"{text} On the {evaluation.split_title(split).lower()} split, {found}"


def _cards(run: Run) -> list[Card]:
    """Headline figures: of the first split that it was evaluated on, else of validation while training."""
    best, goodput = run.best, run.goodput
    found: list[Card] = []
    if run.splits:
        split = evaluation.split_title(run.splits[0])
        metrics = run.evaluations[run.splits[0]]
        first, *others = evaluation.cards(metrics)
        rows = f"{metrics['rows']:,} records, {len(metrics['per_class']):,} classes"
        found = [Card(f"{split} {first.label.lower()}", first.value, rows), *others]
        found = [card for card in found if card.label not in ("AUROC", "Log loss")]
    if run.is_validated:
        note = f"of the best epoch, {best['epoch']}"
        found.append(Card(f"Validation {run.headline.name}", percent(best[run.headline.key]), note))
        if not run.splits:
            found.append(Card("Validation macro F1", score(best.get("val_macro_f1")), note))
            found.append(Card("Validation loss", score(best.get("val_loss")), note))
    if goodput:
        note = "the last command" if len(run.commands) > 1 else "from start to end"
        found.append(Card("Training time", seconds(goodput["wall_s"]), note))
    return found


def _figures(run: Run) -> list[dict[str, Any]]:
    """A row of figures for each split that was evaluated, and for validation while training."""
    rows: list[dict[str, Any]] = [
        {"name": evaluation.split_title(split), "average_precision": None, **run.evaluations[split]}
        for split in run.splits
    ]
    if run.is_validated:
        names = ("rows", *_VALIDATED, "macro_f1")
        unknown = dict.fromkeys(("average_precision", "auroc", "log_loss", "ece"))
        values = {name: run.best.get(f"val_{name}") for name in names}
        rows.append({"name": f"Validation while training, epoch {run.best['epoch']}", **unknown, **values})
    return rows
