from __future__ import annotations

import json
from pathlib import Path

import pytest

from xmodal_dist.config import Config, dump, encoders, json_schema, load
from xmodal_dist.errors import UsageError
from xmodal_dist.modalities.fields import field_settings


def test_no_file_and_no_overrides_are_the_defaults() -> None:
    assert load() == Config()


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  epochs: 3\n  seed: 5\n")
    settings = load(str(file), ["train.epochs=7", "fields.photo.size_px=64", "model.fusion=late"])
    assert (settings.train.epochs, settings.train.seed, settings.model.fusion) == (7, 5, "late")
    assert settings.fields == {"photo": {"size_px": 64}}


def test_what_is_printed_loads_back_to_the_same_settings(tmp_path: Path) -> None:
    settings = load(None, ["train.epochs=7", "pack.split_ratio=[0.6,0.2,0.2]", "train.num_workers=null"])
    file = tmp_path / "run.yaml"
    file.write_text(dump(settings))
    assert load(str(file)) == settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epocs=3", r"train: unknown setting 'epocs'; did you mean 'epochs'\?"),
        ("trian.epochs=3", r"unknown setting 'trian'; did you mean 'train'\?"),
        ("train.epochs=0", r"train\.epochs: .*greater than or equal to 1 \(given: 0\)"),
        ("train.epochs=many", r"train\.epochs: .*integer.*\(given: 'many'\)"),
        ("model.fusion=blend", r"model\.fusion: .*'late'.*\(given: 'blend'\)"),
        ("train.epochs", r"expected section\.name=value"),
        ("train..epochs=1", r"expected section\.name=value"),
        ("train.epochs=[", "not valid YAML"),
        ("train.epochs.x=1", r"train\.epochs"),
    ],
)
def test_a_wrong_setting_is_refused_in_the_users_words(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(None, [override])


def test_every_wrong_setting_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  epochs: 0\nmodel:\n  widht: 3\n")
    with pytest.raises(UsageError) as caught:
        load(str(file))
    assert "train.epochs" in str(caught.value) and "did you mean 'width'" in str(caught.value)
    assert str(caught.value).count(str(file)) == 2


@pytest.mark.parametrize("text", ["train: [unclosed", "- a list"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=str(file)):
        load(str(file))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match="nothing.yaml"):
        load("nothing.yaml")


def test_the_schema_is_json_and_names_every_section() -> None:
    assert set(json.loads(json_schema())["properties"]) == set(Config.model_fields)


def test_every_encoder_that_is_listed_can_be_named_with_its_options() -> None:
    lines = encoders()
    assert {line.kind for line in lines} >= {"audio", "image", "tabular", "text"}
    for kind in {line.kind for line in lines}:
        assert [line.is_default for line in lines if line.kind == kind].count(True) == 1
    for line in lines:
        values = {"encoder": line.encoder, "encoder_options": line.options}
        assert line.summary and field_settings("x", line.kind, values)
