"""Search spaces: what they refuse, what they draw, and what algorithms make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_dist import config
from xmodal_dist.errors import UsageError
from xmodal_dist.model.classifier import ModelSettings
from xmodal_dist.pipeline.stream import PipelineSettings
from xmodal_dist.train.settings import TrainSettings
from xmodal_dist.tune.algorithms import make_algorithm, resolve_algorithm
from xmodal_dist.tune.importance import importances
from xmodal_dist.tune.run import RunSettings
from xmodal_dist.tune.settings import Dimension, SearchSettings
from xmodal_dist.tune.space import Space, default_space

RUN = RunSettings(
    {"caption": {"token_dropout": 0.2}},
    ModelSettings(),
    TrainSettings(epochs=4),
    PipelineSettings(),
    {"picture": "image", "caption": "text", "weather": "tabular"},
)
CONDITIONAL: dict[str, Any] = {
    "model.fusion_rank": {"integer": [2, 8], "when": {"model.fusion": "lowrank"}},
    "model.fusion": {"choice": ["late", "lowrank", "attention"]},
    "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "fields.picture.encoder_options.dropout": {
        "uniform": [0.0, 0.5],
        "when": {"fields.picture.encoder": "plain_cnn"},
    },
    "fields.picture.encoder": {"choice": ["cnn", "plain_cnn"]},
}


def test_a_field_that_is_left_out_is_neither_searched_by_itself_nor_by_name() -> None:
    kinds = {name: kind for name, kind in RUN.kinds.items() if name != "caption"}
    run = RUN._replace(fields={**RUN.fields, "caption": None}, kinds=kinds)
    assert default_space(run).keys() == {n for n in default_space(RUN) if not n.startswith("fields.caption.")}
    assert run.with_values({"train.learning_rate": 0.01}).fields["caption"] is None
    with pytest.raises(UsageError, match="no such field"):
        run.with_values({"fields.caption.token_dropout": 0.1})


def _space(content: dict[str, Any]) -> Space:
    return Space({name: Dimension.model_validate(d) for name, d in content.items()})


def test_every_point_is_one_that_a_run_can_have() -> None:
    space = _space(CONDITIONAL)
    space.check(RUN)
    for index in range(40):
        values = space.random_point(np.random.default_rng(index))
        assert space.contains(values)
        assert ("model.fusion_rank" in values) == (values["model.fusion"] == "lowrank")
        run = RUN.with_values(values)
        assert (
            run.model.fusion == values["model.fusion"]
            and run.value_of("train.learning_rate") == (values["train.learning_rate"])
        )
        assert run.fields["caption"] == {"token_dropout": 0.2}


@pytest.mark.parametrize(
    ("name", "dimension", "said"),
    [
        ("train.lerning_rate", {"uniform": [0, 1]}, "did you mean 'learning_rate'"),
        ("train.label_smoothing", {"uniform": [0.0, 1.5]}, "search.space.train.label_smoothing: 1.5"),
        ("model.fusion", {"choice": ["late", "early"]}, "search.space.model.fusion: 'early'"),
        ("fields.sound.gain_db", {"uniform": [0, 6]}, "its fields: picture, caption, weather"),
        ("fields.picture.gain_db", {"uniform": [0, 6]}, "fields.picture"),
        ("pipeline.threads", {"integer": [1, 4]}, "expected a setting of fields, model, train"),
        ("train.num_workers", {"integer": [1, 4]}, "does not make a model better or worse"),
        ("train.seed", {"integer": [1, 4]}, "search.repeat_seeds"),
        ("train.monitor", {"choice": ["loss"]}, "search.metrics"),
    ],
)
def test_a_space_that_a_run_cannot_have_is_refused_by_name(
    name: str, dimension: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        _space({name: dimension}).check(RUN)
    assert said in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    ("dimension", "said"),
    [
        ("{}", "exactly one of choice"),
        ("{uniform: [0, 1], choice: [1]}", "exactly one of choice"),
        ("{uniform: [1, 0]}", "expected [lowest, highest]"),
        ("{loguniform: [0, 1]}", "above 0"),
        ("{normal: [0, 1]}", "unknown setting 'normal'"),
    ],
)
def test_a_dimension_that_is_none_is_refused_when_the_file_is_read(dimension: str, said: str) -> None:
    with pytest.raises(UsageError, match="search.space") as caught:
        config.load(None, [f"search.space={{train.dropout: {dimension}}}"])
    assert said in str(caught.value)


def test_conditions_must_lead_somewhere() -> None:
    with pytest.raises(UsageError, match="'model.fusion' is not searched"):
        _space({"model.fusion_rank": {"integer": [2, 8], "when": {"model.fusion": "lowrank"}}})
    with pytest.raises(UsageError, match="circles"):
        _space({"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1], "when": {"a": 1}}})


def test_a_grid_has_every_combination_once_and_leaves_out_what_does_not_apply() -> None:
    space = _space({name: CONDITIONAL[name] for name in ("model.fusion", "model.fusion_rank")})
    points = list(space.grid())
    assert len(points) == 2 + 7 and len({str(point) for point in points}) == 9
    settings = SearchSettings(algorithm="grid")
    grid = make_algorithm(space, settings, {}, 1, 0)
    assert [grid.ask(index) for index in range(10)] == [*points, None]
    with pytest.raises(UsageError, match="grid needs choice or integer"):
        make_algorithm(_space(CONDITIONAL), settings, {}, 1, 0)


def test_the_default_space_suits_the_fields_and_holds_the_defaults() -> None:
    space = Space(default_space(RUN))
    space.check(RUN)
    assert space.contains(space.base_point(RUN))
    names = set(space.dimensions)
    assert {"train.learning_rate", "train.weight_decay", "model.width", "model.fusion"} <= names
    assert {"fields.picture.rotation_deg", "fields.caption.token_dropout"} <= names
    assert space.dimensions["fields.caption.encoder"].choice == ("bag", "ngrams")
    for settled in ({"encoder": "gru"}, {"encoder_options": {"feature_dropout": 0.1}}):
        assert "fields.caption.encoder" not in default_space(RUN._replace(fields={"caption": settled}))
    alone = Space(default_space(RUN._replace(kinds={"caption": "text"}, fields={})))
    assert "model.fusion" not in alone.dimensions and "fields.caption.token_dropout" in alone.dimensions


@given(st.integers(0, 2**31), st.integers(0, 50))
def test_random_trials_depend_on_seed_and_index_alone(seed: int, index: int) -> None:
    space, settings = _space(CONDITIONAL), SearchSettings(algorithm="random", seed=seed)
    once, again = (make_algorithm(space, settings, {}, 1, known) for known in (0, 7))
    assert once.ask(index) == again.ask(index)


def test_the_estimator_learns_also_from_trials_that_it_is_told_of() -> None:
    pytest.importorskip("optuna")
    space = _space(
        {"train.learning_rate": {"uniform": [0.001, 1.0]}, **{k: CONDITIONAL[k] for k in ("model.fusion",)}}
    )
    settings = resolve_algorithm(SearchSettings(algorithm="optuna", scheduler="none"))
    told = make_algorithm(space, settings, {}, 1, 30)
    rng = np.random.default_rng(0)
    for _ in range(30):
        values = space.random_point(rng)
        told.tell(
            None, values, (-abs(values["train.learning_rate"] - 0.3) - (values["model.fusion"] != "late"),)
        )
    asked = [told.ask(index) for index in range(30, 50)]
    near = [
        v for v in asked if v and abs(v["train.learning_rate"] - 0.3) < 0.2 and v["model.fusion"] == "late"
    ]
    assert len(near) >= 10, "of random ones about 3 would be"


def test_the_estimator_begins_around_the_settings_of_the_run_as_far_as_they_are_searched() -> None:
    pytest.importorskip("optuna")
    space = Space(default_space(RUN))
    outside = space.base_point(RUN) | {"train.learning_rate": 1.0}
    settings = resolve_algorithm(SearchSettings(algorithm="optuna"))
    kept = {name: 0 for name in outside}
    for seed in range(8):
        algorithm = make_algorithm(space, settings.model_copy(update={"seed": seed}), outside, 1, 0)
        for index in range(8):
            values = algorithm.ask(index)
            assert values is not None and space.contains(values)
            for name in outside:
                kept[name] += values[name] == outside[name]
    assert kept.pop("train.learning_rate") == 0
    assert all(16 <= count <= 56 for count in kept.values()), "about half of 64, of choices more"


def test_what_cannot_go_together_is_told_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="set search.algorithm to random"):
        resolve_algorithm(SearchSettings(algorithm="grid", scheduler="pbt"))
    with pytest.raises(UsageError, match="set search.scheduler to none"):
        resolve_algorithm(SearchSettings(metrics=("accuracy", "parameters")))
    with pytest.raises(UsageError, match="set search.final to promote"):
        resolve_algorithm(SearchSettings(scheduler="pbt", repeat_seeds=3))
    assert resolve_algorithm(SearchSettings(scheduler="pbt")).algorithm == "random"


def test_importance_finds_the_setting_that_mattered() -> None:
    space = _space({k: CONDITIONAL[k] for k in ("train.learning_rate", "model.fusion", "model.fusion_rank")})
    rng = np.random.default_rng(1)
    points = [space.random_point(rng) for _ in range(40)]
    epochs = [int(rng.integers(1, 9)) for _ in points]
    # Half of it is how long a trial was let go on, which is no setting's merit.
    scores = [float(np.log(p["train.learning_rate"])) + e / 2 for p, e in zip(points, epochs, strict=True)]
    plain = {n: d.model_dump(mode="json", exclude_none=True) for n, d in space.dimensions.items()}
    found = importances(plain, points, scores, epochs)
    assert next(iter(found)) == "train.learning_rate" and found["train.learning_rate"] > 0.8
    assert sum(found.values()) == pytest.approx(1.0)
    assert importances(plain, points[:5], scores[:5], epochs[:5]) == {}
    assert importances(plain, points, [0.5] * 40, epochs) == {}
