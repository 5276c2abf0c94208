"""The report of a comparison: the verdict, every model with its interval, and how it was done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xmodal_dist.report import strips
from xmodal_dist.report.page import Card, number, percent
from xmodal_dist.report.page import render as render_page

__all__ = ["render"]


def render(result: Mapping[str, Any], run: Mapping[str, str]) -> str:
    """The page of one comparison.

    Args:
        result: content of ``comparison.json``.
        run: what was compared, name -> value, for the header.

    Returns:
        One self-contained HTML page.
    """
    models = result["models"]
    network = next(m for m in models if m["role"] == "network")
    against = {c["second"]: c for c in result["comparisons"] if c["first"] == network["name"]}
    lowest = min(m["accuracy_interval"][0] for m in models)
    return render_page(
        "comparison",
        title="Comparison",
        run=run,
        cards=_cards(result, network, against),
        verdict=result["verdict"],
        models=[_row(m, against.get(m["name"]), network["accuracy"], lowest) for m in models],
        lowest=lowest,
        rows=result["rows"],
        flawless=any(m["accuracy"] == 1 for m in models),
        features=result["features"],
        skipped=result["skipped"],
        how=_how(result),
    )


def _cards(
    result: Mapping[str, Any], network: Mapping[str, Any], against: Mapping[str, Mapping[str, Any]]
) -> list[Card]:
    cards = [Card("Network", percent(network["accuracy"]), "accuracy")]
    for role, label in (("stack", "Classical stack"), ("baseline", "Classical, one field")):
        of_role = [m for m in result["models"] if m["role"] == role]
        if of_role:
            best = max(of_role, key=lambda m: (m["val_accuracy"] or 0.0, m["accuracy"]))
            chosen = "on validation" if best["val_accuracy"] is not None else "on these very rows"
            cards.append(Card(label, percent(best["accuracy"]), f"the best {chosen}"))
    for words, sign in (("Clearly beaten", 1), ("Clearly better", -1)):
        clear = sum(c["significant"] and sign * c["difference"] > 0 for c in against.values())
        cards.append(Card(words, f"{clear} of {len(against)}", "models, by more than chance"))
    cards.append(Card("Rows", number(result["rows"]), f"{result['classes']:,} classes"))
    return cards


def _row(
    model: Mapping[str, Any], against: Mapping[str, Any] | None, network_accuracy: float, lowest: float
) -> dict[str, Any]:
    low, high = model["accuracy_interval"]
    name = model["title"].removeprefix("the ")
    title = f"{name}: {percent(model['accuracy'])}, 95 % interval {percent(low)} to {percent(high)}"
    return {
        **model,
        "title": name[0].upper() + name[1:],
        "figure": strips.interval(title, (low, model["accuracy"], high), (lowest, 1.0), network_accuracy),
        "ends": f"{percent(low).removesuffix(' %')} to {percent(high).removesuffix(' %')}",
        "choice": ", ".join(f"{name} {value:g}" for name, value in model["choice"].items()),
        "against": None if against is None else _difference(against),
    }


def _difference(against: Mapping[str, Any]) -> dict[str, str]:
    if not against["significant"]:
        level, words = "chance", "chance"
    elif against["difference"] > 0:
        level, words = "stable", "network better"
    else:
        level, words = "major", "network worse"
    p = "< 0.001" if against["p_holm"] < 0.001 else f"{against['p_holm']:.3f}"
    points = f"{100 * against['difference']:+.1f}".replace("-", "\N{MINUS SIGN}")
    return {"points": points, "p": p, "level": level, "words": words}


def _how(result: Mapping[str, Any]) -> dict[str, str]:
    fitted, train = result["rows_fitted"], result["rows_train"]
    drawn = f" drawn at random (--max-rows {result['max_rows']:,})" if train > result["max_rows"] else ""
    chosen = (
        f"{result['rows_chosen_on']:,} rows of val" if result["rows_chosen_on"] else "none: defaults taken"
    )
    rejected = ", ".join(f"{split} {rows:,}" for split, rows in result["rejected"].items())
    return {
        "fitted to": f"{fitted:,} of {train:,} rows of train{drawn}",
        "choices made on": chosen,
        "compared on": f"{result['rows']:,} rows of {result['split']}",
        "rows that cannot be decoded": rejected,
        "rows that only one side could read": f"{result['rows_only_one_side']:,}",
        "intervals": result["interval"],
        "paired test": result["test"],
    }
