"""The report of a scoring run: rows in and out, what was predicted how surely, what was rejected and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xmodal_dist.report import plots
from xmodal_dist.report.page import Card, bars, flatten, number, percent, seconds
from xmodal_dist.report.page import render as render_page

__all__ = ["render"]


def render(
    manifest: Mapping[str, Any],
    label_counts: Mapping[str, int],
    confidence_counts: Sequence[int],
    quarantine: Mapping[str, int],
) -> str:
    """The page of one scoring run.

    Args:
        manifest: content of ``_manifest.json``; ``rows_in``, ``wall_s`` and ``rows_per_s`` are shown as key
            figures where they are there, everything else as a list.
        label_counts: class -> rows that it was predicted for.
        confidence_counts: rows per equal-width bin of the predicted class's probability, over [0, 1].
        quarantine: reason code -> rejected rows.

    Returns:
        One self-contained HTML page. Rows that do not add up are shown as an error.
    """
    rows_scored, rows_quarantined = sum(label_counts.values()), sum(quarantine.values())
    rows_in = manifest.get("rows_in", rows_scored + rows_quarantined)
    by_count = {name: rows for name, rows in sorted(label_counts.items(), key=lambda kv: (-kv[1], kv[0]))}
    by_reason = {name: rows for name, rows in sorted(quarantine.items(), key=lambda kv: (-kv[1], kv[0]))}
    return render_page(
        "scoring",
        title="Batch scoring",
        run={name: str(manifest[name]) for name in ("bundle", "fingerprint", "run_id") if name in manifest},
        cards=_cards(manifest, rows_in, rows_scored, rows_quarantined),
        rows_unaccounted=rows_in - rows_scored - rows_quarantined,
        labels=bars(by_count),
        confidence=plots.histogram("Confidence", confidence_counts, "probability of the predicted class"),
        rows_scored=rows_scored,
        quarantine=bars(by_reason),
        manifest=flatten(manifest),
    )


def _cards(manifest: Mapping[str, Any], rows_in: int, rows_scored: int, rows_quarantined: int) -> list[Card]:
    def share(rows: int) -> str:
        return f"{percent(rows / rows_in, 2)} of the input" if rows_in else ""

    cards = [
        Card("Rows in", number(rows_in), "= scored + quarantined"),
        Card("Scored", number(rows_scored), share(rows_scored)),
        Card(
            "Quarantined",
            number(rows_quarantined),
            share(rows_quarantined),
            "bad" if rows_quarantined else "",
        ),
    ]
    if "rows_per_s" in manifest:
        cards.append(Card("Throughput", f"{number(manifest['rows_per_s'])}/s", "rows"))
    if "wall_s" in manifest:
        cards.append(Card("Wall time", seconds(manifest["wall_s"])))
    return cards
