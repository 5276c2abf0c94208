"""Published image networks: weights, sizes, norms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.encoders.networks import Field, publish
from xmodal_dist.encoders import Pretrained
from xmodal_dist.encoders.vision import normalise_by_group
from xmodal_dist.errors import UsageError


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that cannot be asked, and a cache that holds nothing."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def _pretrained(field: Field, seed: int = 0) -> Pretrained:
    encoder = field.encoder(seed)
    assert isinstance(encoder, Pretrained)
    return encoder


def test_group_norm_begins_as_batch_norm_did() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48), nn.Sequential(nn.BatchNorm2d(7)), nn.LayerNorm(4)
    )
    net[1].weight.data.fill_(0.5)
    normalise_by_group(net)
    assert [type(m) for m in (net[1], net[2][0], net[3])] == [nn.GroupNorm, nn.GroupNorm, nn.LayerNorm]
    assert (net[1].num_groups, net[2][0].num_groups) == (3, 1)
    assert (net[1].weight == 0.5).all()


def test_published_normalisation_and_size_take_the_datasets_place(timm: Any) -> None:
    config = timm.get_pretrained_cfg("test_resnet")
    values = Field.of("image", encoder="timm:test_resnet").fitted.values
    assert values["size_px"] == config.input_size[-1]
    assert (values["mean"], values["std"]) == (list(config.mean), list(config.std))
    chosen = Field.of("image", encoder="timm:test_resnet", size_px=48).fitted.values
    assert chosen == values | {"size_px": 48}
    fresh = Field.of("image", encoder="timm:test_resnet", pretrained=False).fitted.values
    assert fresh["size_px"] == 40 and fresh["mean"] != values["mean"]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit2"])
def test_weights_of_a_file_are_loaded(timm: Any, name: str, tmp_path: Path) -> None:
    torch.manual_seed(9)
    published = timm.create_model(name, pretrained=False)
    for module in published.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    save_file(published.state_dict(), tmp_path / "w.safetensors")
    options = {"weights": str(tmp_path / "w.safetensors")}
    field = Field.of("image", encoder=f"timm:{name}", encoder_options=options)
    encoder = _pretrained(field)
    fresh = {name: p.clone() for name, p in encoder.named_parameters() if not name.startswith("backbone.")}
    encoder.load_weights()
    for key, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, published.state_dict()[key]), key
    for key, tensor in fresh.items():
        assert torch.equal(tensor, encoder.get_parameter(key)), key
    with torch.no_grad():
        pixels = field.tensors()["pixels"]
        found = encoder.train().backbone(pixels)
        torch.testing.assert_close(
            found, published.eval().forward_head(published.forward_features(pixels), True)
        )
    for key, tensor in encoder.backbone.state_dict().items():  # statistics too stay as published
        assert torch.equal(tensor, published.state_dict()[key]), key


def test_weights_fit_another_size(timm: Any, tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit2").state_dict(), tmp_path / "w.safetensors")
    options = {"weights": str(tmp_path / "w.safetensors")}
    encoder = _pretrained(Field.of("image", encoder="timm:test_vit2", size_px=64, encoder_options=options))
    before = encoder.backbone.blocks[0].mlp.fc1.weight.clone()
    encoder.load_weights()
    assert not torch.equal(before, encoder.backbone.blocks[0].mlp.fc1.weight)


def test_weights_of_another_network_or_of_none_are_refused(timm: Any, tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit2").state_dict(), tmp_path / "vit.safetensors")
    (tmp_path / "text.safetensors").write_text("nothing")
    for name, said in (("vit", "no weights of timm:test_resnet"), ("text", "readable"), ("none", "readable")):
        options = {"weights": str(tmp_path / f"{name}.safetensors")}
        encoder = _pretrained(Field.of("image", encoder="timm:test_resnet", encoder_options=options))
        with pytest.raises(UsageError, match=r"encoder_options\.weights") as caught:
            encoder.load_weights()
        assert said in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_published_weights_out_of_reach(timm: Any) -> None:
    encoder = _pretrained(Field.of("image", encoder="timm:test_resnet"))
    with pytest.raises(
        UsageError, match=r"timm/test_resnet\.r160_in1k/model\.safetensors is neither in the hub's cache"
    ):
        encoder.load_weights()


def test_names_that_timm_does_not_have(timm: Any) -> None:
    for name, said in (
        ("resnet81", "did you mean resnet"),
        ("resnet18.nothing", "nothing"),
        ("hf-hub:a/b", "has no network"),
    ):
        with pytest.raises(UsageError, match=said):
            Field.of("image", encoder=f"timm:{name}")


@pytest.mark.parametrize(("name", "refused_px", "least_px"), [("vgg16", 16, 32), ("inception_v3", 74, 75)])
def test_images_too_small_for_a_network(timm: Any, name: str, refused_px: int, least_px: int) -> None:
    with pytest.raises(UsageError, match=rf"size_px is {refused_px}, .* set size_px to {least_px} or more"):
        Field.of("image", encoder=f"timm:{name}", size_px=refused_px)
    assert Field.of("image", encoder=f"timm:{name}", size_px=least_px).fitted.values["size_px"] == least_px


def test_vgg_ends_at_its_convolutions(timm: Any) -> None:
    with torch.device("meta"):
        encoder = _pretrained(Field.of("image", encoder="timm:vgg16", pretrained=False))
    assert encoder.norm.normalized_shape == (512,)
    assert sum(p.numel() for p in encoder.backbone.parameters()) == 14_714_688


def test_layers_of_timm_go_by_depth(timm: Any) -> None:
    encoder = _pretrained(Field.of("image", encoder="timm:resnet18", size_px=32))
    place = {id(p): number for number, layer in enumerate(encoder.layers) for p in layer}
    net = encoder.backbone
    depths = [
        place[id(part.weight)]
        for part in (net.conv1, net.layer1[0].conv1, net.layer1[1].conv2, net.layer4[1].conv2)
    ]
    assert depths == sorted(set(depths)) and depths[0] == 0 and depths[-1] == max(place.values())


# --- transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["ViT", "ConvNext", "ResNet"])
def test_a_folder_of_transformers_gives_what_its_own_library_gives(network: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = publish(tmp_path, network)
    field = Field.of("image", encoder=f"hf:{folder}")
    assert field.fitted.values["mean"] == [0.5, 0.4, 0.3]
    assert field.fitted.values["size_px"] == 32
    encoder = _pretrained(field)
    encoder.load_weights()
    pixels = field.tensors()["pixels"]
    with torch.no_grad():
        expected = transformers.AutoModel.from_pretrained(folder).eval()(pixels)
        found = encoder.train().source.features(encoder.backbone, pixels)
    if network == "ViT":
        tokens = expected.last_hidden_state
        torch.testing.assert_close(found, torch.cat([tokens[:, 0], tokens.mean(dim=1)], dim=1))
    else:
        torch.testing.assert_close(found, expected.pooler_output.flatten(1))


def test_the_image_half_of_a_network_of_two(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.CLIPConfig(
        text_config=small | {"vocab_size": 20}, vision_config=small | {"image_size": 32, "patch_size": 8}
    )
    model = transformers.CLIPModel(config)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    encoder = _pretrained(Field.of("image", encoder=f"hf:{tmp_path}"))
    encoder.load_weights()
    expected = model.vision_model.encoder.layers[0].mlp.fc1.weight
    assert any(torch.equal(expected, p) for p in encoder.backbone.parameters())


def test_a_network_without_its_normalisation(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = publish(tmp_path, "ViT")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"preprocessor_config\.json"):
        Field.of("image", encoder=f"hf:{folder}")
    assert Field.of("image", encoder=f"hf:{folder}", pretrained=False).fitted.values["size_px"] == 32
