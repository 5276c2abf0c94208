"""The contract of an encoder, over every architecture of images, sound and tables."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.encoders.networks import NUM_ROWS, WIDTH, Field, publish
from xmodal_dist.batch import Tensors
from xmodal_dist.encoders import Pretrained

CASES: dict[str, dict[str, Any]] = {
    "image-cnn": {"kind": "image", "encoder": "cnn"},
    "image-plain": {"kind": "image", "encoder": "plain_cnn"},
    "image-plain-odd": {
        "kind": "image",
        "encoder": "plain_cnn",
        "size_px": 9,
        "encoder_options": {"activation": "tanh", "channels": [4, 5, 6, 7, 8, 9], "kernel": 5},
    },
    "image-timm-vit": {"kind": "image", "encoder": "timm:test_vit2", "size_px": 32},
    "image-timm-resnet": {"kind": "image", "encoder": "timm:test_resnet", "size_px": 40},
    "image-timm-resnet-fresh": {"kind": "image", "encoder": "timm:test_resnet", "pretrained": False},
    "image-timm-efficientnet-fresh": {
        "kind": "image",
        "encoder": "timm:test_efficientnet",
        "pretrained": False,
    },
    "image-hf-vit": {"kind": "image", "encoder": "hf:ViT"},
    "image-hf-vit-resized": {"kind": "image", "encoder": "hf:ViT", "size_px": 48},
    "image-hf-convnext": {"kind": "image", "encoder": "hf:ConvNext"},
    "image-hf-resnet": {"kind": "image", "encoder": "hf:ResNet"},
    "image-hf-resnet-fresh": {"kind": "image", "encoder": "hf:ResNet", "pretrained": False},
    "audio-cnn": {"kind": "audio", "encoder": "cnn"},
    "audio-wave": {"kind": "audio", "encoder": "wave_cnn"},
    "audio-hf-ast": {"kind": "audio", "encoder": "hf:AST"},
    "audio-hf-wav2vec2": {"kind": "audio", "encoder": "hf:Wav2Vec2"},
    "audio-hf-hubert": {"kind": "audio", "encoder": "hf:Hubert"},
    "tabular-mlp": {"kind": "tabular", "encoder": "mlp"},
    "tabular-ft": {"kind": "tabular", "encoder": "ft_transformer"},
}


@pytest.fixture(scope="module", params=CASES)
def field(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    values: dict[str, Any] = dict(CASES[request.param])
    family, _, reference = values["encoder"].partition(":")
    if family == "timm":
        pytest.importorskip("timm")
    if family != "hf":
        return Field.of(**values)
    pytest.importorskip("transformers")
    folder = Path(publish(tmp_path_factory.mktemp("published"), reference))
    fitted = Field.of(**values | {"encoder": f"hf:{folder}"})
    shutil.rmtree(folder)  # What is stored must do.
    return fitted


def _rows(tensors: Tensors, rows: slice) -> Tensors:
    return {name: tensor[rows] for name, tensor in tensors.items()}


@pytest.mark.parametrize("train", [False, True])
def test_no_row_depends_on_another(field: Field, train: bool) -> None:
    encoder, tensors = field.encoder().train(train), field.tensors(train)
    whole = encoder(tensors)
    assert whole.shape == (NUM_ROWS, WIDTH)
    assert whole.isfinite().all()
    for row in range(NUM_ROWS):
        alone = encoder(_rows(tensors, slice(row, row + 1)))
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-4, atol=1e-4)


def test_rows_of_zeros_are_legal(field: Field) -> None:
    tensors = {name: torch.zeros_like(tensor) for name, tensor in field.tensors().items()}
    assert field.encoder().eval()(tensors).isfinite().all()


@pytest.mark.parametrize("train", [False, True])
def test_same_seed_same_features(field: Field, train: bool) -> None:
    tensors = field.tensors(train)
    torch.manual_seed(1)  # nothing draws in forward
    first = field.encoder().train(train)
    features = first(tensors)
    torch.manual_seed(2)
    assert torch.equal(features, first(tensors))
    assert torch.equal(features, field.encoder().train(train)(tensors))


def test_rows_differ(field: Field) -> None:
    features = field.encoder().eval()(field.tensors())
    assert (features[0] - features[1]).abs().max() > 1e-4


def test_built_again_from_what_a_bundle_holds_without_a_network(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = field.encoder().eval()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    restored = field.restored()
    again = restored.encoder(seed=5).eval()
    again.load_state_dict(before.state_dict())
    assert torch.equal(before(field.tensors()), again(restored.tensors()))


def test_a_gradient_reaches_every_parameter_that_learns(field: Field) -> None:
    encoder = field.encoder().train()
    learns = [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]
    assert learns
    (encoder(field.tensors(train=True)) * torch.linspace(-1, 1, WIDTH)).square().sum().backward()
    for name, parameter in learns:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert sum(bool(p.grad.any()) for _, p in learns) > len(learns) / 2


def test_layers_of_a_pretrained_network_are_its_parameters_in_order(field: Field) -> None:
    encoder = field.encoder()
    if not isinstance(encoder, Pretrained):
        pytest.skip("has no pretrained weights")
    layers = encoder.layers
    assert len(layers) >= 2
    listed = [id(p) for layer in layers for p in layer]
    learns = [id(p) for p in encoder.backbone.parameters() if p.requires_grad]
    assert len(listed) == len(set(listed)) and set(listed) == set(learns)
    assert learns[0] in {id(p) for p in layers[0]}
