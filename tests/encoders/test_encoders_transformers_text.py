"""Text encoders of transformers: the network's own tokens and states, offline, and nothing random."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from xmodal_dist.encoders import Pretrained
from xmodal_dist.errors import UsageError
from xmodal_dist.modalities import Fitted
from xmodal_dist.modalities.text import MODALITY, TextSettings

transformers = pytest.importorskip("transformers")

TITLES = ["warm sunset", "leaf", "ocean sky winter", None, "grass leaf forest leaf", "zebra"]
TAGS = ["apple", None, "sky", " ", "warm", None]


def _settings(folder: Path | str, **values: Any) -> TextSettings:
    return TextSettings.model_validate({"encoder": f"hf:{folder}", "token_dropout": 0.5, **values})


def _columns(*columns: list[str | None]) -> list[pa.Array]:
    return [pa.array(column, pa.string()) for column in columns]


def _fit(settings: TextSettings, *columns: list[str | None]) -> Fitted:
    return MODALITY.fit(settings, pa.table(_columns(*columns), names=[f"c{i}" for i in range(len(columns))]))


def _ids(settings: TextSettings, fitted: Fitted, *columns: list[str | None]) -> torch.Tensor:
    return torch.from_numpy(MODALITY.decode(settings, fitted, _columns(*columns), None).arrays["ids"]).long()


def _encoder(settings: TextSettings, fitted: Fitted) -> Pretrained:
    torch.manual_seed(0)
    encoder = MODALITY.encoder(settings, fitted, 8)
    assert isinstance(encoder, Pretrained)
    return encoder


@pytest.fixture(scope="module")
def fitted(tiny_bert: Path) -> Fitted:
    return _fit(_settings(tiny_bert), TITLES, TAGS)


def test_ids_are_those_of_the_networks_own_tokenizer(tiny_bert: Path, fitted: Fitted) -> None:
    own = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    decoded = MODALITY.decode(_settings(tiny_bert), fitted, _columns(TITLES, TAGS), None)
    assert decoded.present.tolist() == [True, True, True, False, True, True]
    assert not decoded.arrays["ids"][3].any()
    for row, pair in zip(decoded.arrays["ids"], zip(TITLES, TAGS, strict=True), strict=True):
        texts = [text for text in pair if text and text.strip()]
        expected = own(*texts).input_ids if texts else []
        assert row[row != 0].tolist() == expected


def test_a_long_text_is_cut_inside_its_marks(tiny_bert: Path, fitted: Fitted) -> None:
    own = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    row = _ids(_settings(tiny_bert), fitted, ["leaf " * 50], ["warm"])[0]
    assert len(row) == fitted.values["num_tokens"] <= 24
    assert row[0] == own.cls_token_id and row[-1] == own.sep_token_id and (row != 0).all()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_features_are_the_networks_states_of_each_row_alone(
    tiny_bert: Path, fitted: Fitted, pooling: str
) -> None:
    settings = _settings(tiny_bert, encoder_options={"pooling": pooling})
    encoder = _encoder(settings, fitted).eval()
    encoder.load_weights()
    own = transformers.AutoModel.from_pretrained(tiny_bert).eval()
    ids = _ids(settings, fitted, TITLES, TAGS)
    with torch.no_grad():
        features = encoder({"ids": ids})
        for row, found in zip(ids, features, strict=True):
            states = (
                own(input_ids=row[row != 0][None]).last_hidden_state[0] if row.any() else torch.zeros(1, 32)
            )
            pooled = states[0] if pooling == "cls" else states.mean(dim=0)
            torch.testing.assert_close(found, encoder.project(pooled), rtol=1e-5, atol=1e-6)


def test_a_dropped_token_is_seen_by_none_and_marks_stay(tiny_bert: Path, fitted: Fitted) -> None:
    settings = _settings(tiny_bert)
    encoder = _encoder(settings, fitted).eval()
    ids = _ids(settings, fitted, TITLES[4:5], TAGS[4:5])
    dropped = ids.clone()
    dropped[0, 2] = 0
    with torch.no_grad():
        one = encoder({"ids": dropped})
        embed: Any = encoder.backbone.get_input_embeddings()
        embed.weight[0] += 1.0  # what stands at a place without a token
        torch.testing.assert_close(encoder({"ids": dropped}), one)
    keys = torch.arange(500)
    seen = MODALITY.transform(settings, fitted, {"ids": ids.expand(500, -1)}, keys)["ids"]
    is_mark = (ids == 2) | (ids == 3)
    assert (seen[:, is_mark[0]] != 0).all()
    assert abs(float((seen[:, (ids[0] != 0) & ~is_mark[0]] == 0).float().mean()) - 0.5) < 0.05


def test_nothing_is_random_but_by_key_and_every_parameter_that_learns_has_a_gradient(
    tiny_bert: Path, fitted: Fitted
) -> None:
    settings = _settings(tiny_bert)
    encoder = _encoder(settings, fitted).train()
    state = torch.get_rng_state()
    inputs = {"ids": _ids(settings, fitted, TITLES, TAGS), "keys": torch.arange(6)}
    features = encoder(inputs)
    assert torch.equal(features, encoder(inputs)) and torch.equal(state, torch.get_rng_state())
    learning = [p for p in encoder.parameters() if p.requires_grad]
    assert sum(len(layer) for layer in encoder.layers) + 2 == len(learning)
    for ids in (inputs["ids"], torch.zeros_like(inputs["ids"])):
        encoder.zero_grad()
        encoder({"ids": ids, "keys": inputs["keys"]}).sum().backward()
        assert all(p.grad is not None for p in learning)
    assert encoder({"ids": torch.zeros(0, 5, dtype=torch.int64)}).shape == (0, 8)


def test_layers_go_from_embeddings_to_the_last_block(tiny_bert: Path, fitted: Fitted) -> None:
    encoder = _encoder(_settings(tiny_bert), fitted)
    names = {p: name for name, p in encoder.backbone.named_parameters()}
    kinds = [{names[p].split(".layer.")[-1].split(".")[0] for p in layer} for layer in encoder.layers]
    assert kinds == [{"embeddings"}, {"0"}, {"1"}]
    held = [name for name, p in encoder.backbone.named_parameters() if not p.requires_grad]
    assert all(name.endswith("key.bias") for name in held) and len(held) == 2


def test_a_frozen_backbone_has_no_graph_and_learns_again_when_it_is_let(
    tiny_bert: Path, fitted: Fitted
) -> None:
    settings = _settings(tiny_bert)
    encoder = _encoder(settings, fitted).train()
    before = [p.requires_grad for p in encoder.parameters()]
    inputs = {"ids": _ids(settings, fitted, TITLES, TAGS)}
    expected = encoder(inputs)
    encoder.freeze(True)
    features = encoder(inputs)
    assert torch.equal(features, expected)
    features.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is not None] == [
        "project.weight",
        "project.bias",
    ]
    encoder.freeze(False)
    assert [p.requires_grad for p in encoder.parameters()] == before


def test_a_fitted_field_is_all_that_a_network_is_built_from(
    tiny_bert: Path, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert, folder)
    settings = _settings(folder)
    own = _fit(settings, TITLES, TAGS)
    assert own.files == fitted.files
    trained = _encoder(settings, own)
    trained.load_weights()
    shutil.rmtree(folder)
    monkeypatch.setattr(socket, "create_connection", _no_network)
    stored = Fitted(json.loads(json.dumps(own.values)), own.files)
    rebuilt = _encoder(settings, stored)
    rebuilt.load_state_dict(trained.state_dict())
    inputs = {"ids": _ids(settings, stored, TITLES, TAGS)}
    assert torch.equal(rebuilt(inputs), trained(inputs))
    with pytest.raises(UsageError, match=r"no model\.safetensors"):
        rebuilt.load_weights()


def _no_network(*_: Any, **__: Any) -> socket.socket:
    raise OSError("there is no network here")


def test_what_is_not_there_is_told_with_where_it_was_looked_for(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with pytest.raises(UsageError, match=r"nowhere is no folder on"):
        _settings(tmp_path / "nowhere").prepare()
    with pytest.raises(UsageError, match=r"no usable config\.json"):
        _settings(tmp_path).prepare()
    monkeypatch.setattr(socket, "create_connection", _no_network)
    with pytest.raises(UsageError, match=r"not in the cache .*cannot be reached: there is no network"):
        _settings("someone/something").prepare()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        _settings("someone/something").prepare()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("pickle", r"no model\.safetensors"),
        ("tensor", r"no weights of encoder\.layer\.1\.output\.dense\.weight"),
        ("size", r"no weights that fit its config\.json"),
    ],
)
def test_weights_that_are_no_weights_of_this_network_are_refused(
    tiny_bert: Path, tmp_path: Path, damage: str, message: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert, folder)
    settings = _settings(folder)
    encoder = _encoder(settings, _fit(settings, TITLES))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "encoder.layer.1.output.dense.weight"
    if damage == "pickle":
        torch.save(weights, folder / "pytorch_model.bin")
    elif damage == "tensor":
        del weights[name]
    else:
        weights[name] = weights[name][:, :-1].contiguous()
    if damage != "pickle":
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=message):
        encoder.load_weights()


def test_a_network_with_a_decoder_is_refused(tmp_path: Path) -> None:
    transformers.T5Config(d_model=8, num_layers=1, num_heads=1, d_ff=8).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="t5 with a decoder"):
        _settings(tmp_path).prepare()


def test_a_token_of_number_zero_is_no_padding(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "leaf": 4, "sky": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names)
    own.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.RobertaConfig(vocab_size=6, max_position_embeddings=18, pad_token_id=1, **sizes)
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    settings = _settings(tmp_path)
    fitted = _fit(settings, ["leaf sky", "sky"], ["leaf", None])
    ids = _ids(settings, fitted, ["leaf sky", "sky"], ["leaf", None])
    assert ids.tolist() == [[1, 4, 5, 2, 2, 4, 2], [1, 5, 2, 0, 0, 0, 0]]
    encoder = _encoder(settings, fitted).eval()
    encoder.load_weights()
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([[0, 5, 2]])).last_hidden_state[0]
        expected = encoder.project(states.mean(dim=0))
        torch.testing.assert_close(encoder({"ids": ids})[1], expected, rtol=1e-5, atol=1e-6)


def test_words_and_measures_leave_marks_out(tiny_bert: Path, fitted: Fitted) -> None:
    settings = _settings(tiny_bert)
    words = MODALITY.words(settings, fitted, ["  ocean  skyy", "leaf"])
    assert [word for word, _ in words] == ["", "ocean", "skyy", "", "leaf", ""]
    ids = _ids(settings, fitted, ["  ocean  skyy", "zebra"], ["leaf", None])
    assert sum(count for _, count in words) == int((ids[0] != 0).sum())
    assert all(count for _, count in words)
    assert MODALITY.words(settings, fitted, [None, " "]) == []
    long = MODALITY.words(settings, fitted, ["leaf " * 50, "sky"])
    assert sum(count for _, count in long) == fitted.values["num_tokens"] and long[-2] == ("sky", 0)
    found = MODALITY.measures(settings, fitted, {"ids": ids.int().numpy()})
    assert found["tokens"].tolist()[0] == int((ids[0] != 0).sum()) - 3
    assert MODALITY.measures(settings, fitted, {"ids": ids.int().numpy()})["unknown_share"].max() <= 1
