"""The page of a comparison."""

from __future__ import annotations

from xmodal_dist.report.comparison import render
from xmodal_dist.report.page import self_contained


def _model(name, role, accuracy, **more):
    figures = {f: accuracy for f in ("accuracy", "macro_recall", "macro_f1")}
    ends = {"accuracy_interval": [accuracy - 0.1, min(1.0, accuracy + 0.1)]}
    rest = {"choice": {}, "val_accuracy": None, "fit_cpu_s": None, "note": "", "model": name.split(":")[0]}
    return {
        "name": name,
        "title": f"the {name}",
        "role": role,
        "fields": ["a"],
        **figures,
        **ends,
        **rest,
        **more,
    }


def _result():
    models = [
        _model("svm:stack", "stack", 1.0, choice={"C": 0.1}, val_accuracy=0.95, note="<b>joins</b>"),
        _model("network:a+b", "network", 0.9, fit_cpu_s=90.0),
        _model("svm:a", "baseline", 0.7, val_accuracy=0.71, fit_cpu_s=0.2),
        _model("nb:a", "baseline", 0.6, val_accuracy=0.61),
    ]
    tests = [("svm:stack", -0.1, 0.01), ("svm:a", 0.2, 0.0001), ("nb:a", 0.3, 0.2)]
    return {
        "split": "test", "rows": 300, "classes": 3, "fields": ["a", "b"], "rows_train": 90_000,
        "rows_fitted": 10_000, "rows_chosen_on": 200, "max_rows": 10_000, "rejected": {"train": 2, "test": 0},
        "rows_only_one_side": 1, "test": "McNemar", "interval": "bootstrap", "models": models,
        "features": {"a": {"what": "HOG", "columns": 300, "dense_columns": 128, "cpu_s": 0.5}},
        "skipped": [{"model": "multinomial_nb", "field": "a", "reason": "its features can be negative"}],
        "comparisons": [
            {"first": "network:a+b", "second": name, "difference": d, "p_holm": p, "significant": p < 0.05}
            for name, d, p in tests
        ],
        "verdict": ["The network does not win: <it> loses."],
    }  # fmt: skip


def test_page_says_who_wins_and_how_it_was_done():
    html = render(_result(), {"split": "test"})
    self_contained(html)
    assert html == render(_result(), {"split": "test"})
    for words in (
        "The network does not win: &lt;it&gt; loses.",
        "&lt;b&gt;joins&lt;/b&gt;",
        '<span class="chip major">network worse</span>',
        '<span class="chip stable">network better</span>',
        '<span class="chip chance">chance</span>',
        "\N{MINUS SIGN}10.0",
        "&lt; 0.001",
        "10,000 of 90,000 rows of train drawn at random (--max-rows 10,000)",
        "train 2, test 0",
        "Left out: multinomial_nb on a, because its features can be negative.",
        "an error rate of up to 1.0 % may show none",
        "1 min 30 s",
    ):
        assert words in html, words
    rows = html.split("<tbody>")[1]
    assert rows.index("Svm:stack") < rows.index("Network:a+b") < rows.index("Svm:a") < rows.index("Nb:a")
    assert rows.count("<svg") == 4
