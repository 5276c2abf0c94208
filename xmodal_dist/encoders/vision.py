"""Image networks with published weights: those of timm by name, those of transformers by folder or hub id.

Where a network is trained from nothing, GroupNorm (Wu and He 2018) stands in for BatchNorm, which would let a row's
features depend on the other rows of its batch. With published weights BatchNorm keeps its published statistics, and its
scale and shift may learn. What a network draws at random in training (dropout, stochastic depth) is off.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders import hub
from xmodal_dist.encoders.base import Architecture, Prepared, Pretrained, Request
from xmodal_dist.encoders.preprocessing import fetch_preprocessing
from xmodal_dist.errors import UsageError
from xmodal_dist.settings import Settings

__all__ = ["VISION_ENCODERS", "TimmOptions", "normalise_by_group"]

_GROUP_CHANNELS = 16
_LARGEST_SIDE_PX = 1024
_CONFIG_FILE = "config.json"


def normalise_by_group(module: nn.Module) -> None:
    """Put GroupNorm, of groups of at least 16 channels, in the place of every BatchNorm below ``module``.

    Scale and shift begin where BatchNorm's did; what timm keeps beside them (the activation) stays.
    """
    for name, child in module.named_children():
        if not isinstance(child, nn.modules.batchnorm._BatchNorm):
            normalise_by_group(child)
            continue
        channels = child.num_features
        groups = next(g for g in range(max(1, channels // _GROUP_CHANNELS), 0, -1) if channels % g == 0)
        norm = nn.GroupNorm(groups, channels, child.eps, affine=child.affine)
        if child.affine:
            norm.load_state_dict({"weight": child.weight, "bias": child.bias})
        activation = getattr(child, "act", None)
        setattr(module, name, norm if activation is None else nn.Sequential(norm, activation))


@dataclass(frozen=True)
class _Source:
    """Where an image network comes from.

    Attributes:
        name: as the settings say it.
        make: the network with fresh weights, for images of a side in pixels.
        features: [B, F] of the network and pixels [B, 3, side, side].
        layers: the network's parameters that learn, from input to output.
        load: fetches the published weights into the network.
    """

    name: str
    make: Callable[[int], nn.Module]
    features: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    layers: Callable[[nn.Module], Sequence[Sequence[nn.Parameter]]]
    load: Callable[[nn.Module], None]


class _ImageNetwork(Pretrained):
    """A published backbone on ``pixels``, under a norm and a linear layer of its own.

    Args:
        source: where the backbone comes from.
        side_px: height and width of the images.
        width: features per row.

    Raises:
        UsageError: the backbone does not take images of this size.
    """

    def __init__(self, source: _Source, side_px: int, width: int) -> None:
        try:
            backbone, num_features = _tried(source, side_px)
        except (AssertionError, RuntimeError, ValueError) as error:
            least_px = _least_side_px(source, side_px)
            wanted = "another value" if least_px is None else f"{least_px} or more"
            cause = str(error).split("\n", 1)[0]
            raise UsageError(
                f"size_px is {side_px}, too small for {source.name}: set size_px to {wanted} ({cause})"
            ) from error
        super().__init__(backbone, source.layers(backbone), num_features)
        self.source = source
        self.norm = nn.LayerNorm(num_features)
        self.project = nn.Linear(num_features, width)

    def see(self, tensors: Tensors) -> torch.Tensor:
        """The backbone's features [B, F] of normalised ``pixels`` [B, 3, side, side]."""
        return self.source.features(self.backbone, tensors["pixels"])

    def head(self, seen: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """Features [B, width], normed and projected."""
        features: torch.Tensor = self.project(self.norm(seen))
        return features

    def load_weights(self) -> None:
        """Fetch the backbone's published weights."""
        self.source.load(self.backbone)


def _tried(source: _Source, side_px: int) -> tuple[nn.Module, int]:
    """A backbone in which what never gets a gradient does not learn, and the number of its features."""
    backbone = source.make(side_px).eval()
    sizes: list[int] = []

    def run() -> torch.Tensor:
        found = source.features(backbone, torch.zeros(1, 3, side_px, side_px))
        sizes.append(found.shape[1])
        return found

    hub.settle(backbone, run)
    return backbone, sizes[0]


def _least_side_px(source: _Source, refused_px: int) -> int | None:
    """The smallest side above a refused one that the network takes; None where it takes no twofold of it."""

    @torch.no_grad()
    def takes(side_px: int) -> bool:
        try:
            with torch.device("meta"):
                source.features(source.make(side_px).eval(), torch.zeros(1, 3, side_px, side_px))
        except (AssertionError, RuntimeError, ValueError):
            return False
        return True

    taken_px = next((px for px in _doubled(refused_px) if takes(px)), None)
    while taken_px is not None and taken_px - refused_px > 1:
        middle_px = (taken_px + refused_px) // 2
        if takes(middle_px):
            taken_px = middle_px
        else:
            refused_px = middle_px
    return taken_px


def _doubled(side_px: int) -> list[int]:
    return [side_px << n for n in range(1, 8) if side_px << n <= _LARGEST_SIDE_PX]


def _pooled(found: torch.Tensor) -> torch.Tensor:
    """[B, F]; of tokens [B, T, D] the first (a class token, where there is one) and the mean, of maps the mean."""
    if found.ndim == 3:
        return torch.cat([found[:, 0], found.mean(dim=1)], dim=1)
    return found if found.ndim == 2 else found.mean(dim=(2, 3))


# --- timm ------------------------------------------------------------------------------------------------------------


class TimmOptions(Settings):
    """Options of timm's networks."""

    weights: str | None = None
    """A .safetensors file with weights of this network, named as timm names them, that every machine of the run can
    read; null takes the published ones from the hub's cache or the hub."""


def _timm_prepare(reference: str, pretrained: bool) -> Prepared:
    """Size and normalisation that the published weights were trained with; the size alone where it is fixed."""
    timm = hub.optional("timm", "timm")
    if ":" in reference or not timm.is_model(reference):
        near = difflib.get_close_matches(reference, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them"
        raise UsageError(f"encoder: timm has no network {reference!r}; {hint}")
    try:
        config = timm.get_pretrained_cfg(reference, allow_unregistered=False)
    except RuntimeError as error:
        raise UsageError(f"encoder: timm:{reference}: {error}") from error
    values: dict[str, Any] = {"pretrained": pretrained, "fixed_size": config.fixed_input_size}
    if pretrained or config.fixed_input_size:
        values["size_px"] = config.input_size[-1]
    if pretrained:
        values |= {"mean": list(config.mean), "std": list(config.std)}
    return Prepared(values)


def _timm_build(request: Request) -> nn.Module:
    timm = hub.optional("timm", "timm")
    name, options, values = request.reference, request.options, request.values
    assert isinstance(options, TimmOptions)

    def make(side_px: int, **weights: Any) -> nn.Module:
        size = {"img_size": side_px} if values["fixed_size"] else {}
        model: nn.Module = timm.create_model(name, num_classes=0, **size, **weights)
        if isinstance(model, timm.models.VGG):
            # Its two dense layers are 9 of 10 parameters, and of use to ImageNet's classes; they end the features.
            model.pre_logits = nn.Identity()
        if not values["pretrained"]:
            normalise_by_group(model)
        return model

    def load(backbone: nn.Module) -> None:
        tensors = _timm_weights(timm, name, options)
        if lacking := sorted(backbone.state_dict().keys() - tensors.keys()):
            raise UsageError(
                f"encoder_options.weights: {options.weights or 'the published file'} holds no weights of timm:{name}: "
                f"{len(lacking)} of its tensors lack, the first {lacking[0]}"
            )
        # timm adapts what depends on the size of the images.
        loaded = make(values["size_px"], pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})
        backbone.load_state_dict(loaded.state_dict())

    def layers(backbone: Any) -> Sequence[Sequence[nn.Parameter]]:
        if not hasattr(backbone, "group_matcher"):
            return hub.layer_parameters(backbone)
        groups = timm.models.group_parameters(backbone, backbone.group_matcher(), reverse=True)
        found: dict[int, list[nn.Parameter]] = {}
        for parameter_name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                found.setdefault(groups[parameter_name], []).append(parameter)
        return [found[number] for number in sorted(found)]

    source = _Source(f"timm:{name}", make, lambda model, pixels: _pooled(model(pixels)), layers, load)
    return _ImageNetwork(source, values["size_px"], request.width)


def _timm_weights(timm: Any, name: str, options: TimmOptions) -> dict[str, torch.Tensor]:
    """The tensors of the file that the options name, else of the published one.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    path = options.weights
    try:
        return load_file(_timm_published(timm, name) if path is None else path)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"encoder_options.weights: {path} is no readable .safetensors file ({error})"
        ) from error


def _timm_published(timm: Any, name: str) -> str:
    config = timm.get_pretrained_cfg(name)
    if not config.hf_hub_id:
        raise UsageError(
            f"timm:{name} has no weights on the hub; name a file in encoder_options.weights, or set pretrained: false"
        )

    download = hub.optional("huggingface_hub", "timm").hf_hub_download
    place = (config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    try:
        try:
            return str(download(*place, local_files_only=True))
        except OSError:
            return str(download(*place))
    except (OSError, ValueError) as error:
        cause = str(error).strip().split("\n", 1)[0]
        raise UsageError(
            f"timm:{name}: {'/'.join(place)} is neither in the hub's cache (HF_HOME) nor to be fetched ({cause}); name "
            "a .safetensors file of it in encoder_options.weights, or set pretrained: false"
        ) from error


# --- transformers ----------------------------------------------------------------------------------------------------


def _hf_prepare(reference: str, pretrained: bool) -> Prepared:
    """Size and normalisation that the published weights were trained with, and the configuration."""
    source = hub.source_of(reference)
    text, revision = hub.fetch_config(source)
    config = json.loads(text)
    config = config.get("vision_config", config)
    values: dict[str, Any] = {"source": source, "revision": revision, "pretrained": pretrained}
    if pretrained:
        values |= _processing(fetch_preprocessing(source))
    elif isinstance(config.get("image_size"), int):
        values["size_px"] = config["image_size"]
    return Prepared(values, {_CONFIG_FILE: json.dumps(config)})


def _processing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``size_px``, ``mean`` and ``std`` of an image processor's settings."""
    size = settings.get("crop_size") if settings.get("do_center_crop", True) else None
    size = size or settings.get("size", {})
    side_px = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
    values = {} if side_px is None else {"size_px": min(int(side_px), _LARGEST_SIDE_PX)}
    if not settings.get("do_normalize", True):
        return values | {"mean": [0.0] * 3, "std": [1.0] * 3}
    return values | {"mean": list(settings["image_mean"]), "std": list(settings["image_std"])}


def _hf_build(request: Request) -> nn.Module:
    config, values = request.files[_CONFIG_FILE], request.values

    def make(side_px: int) -> nn.Module:
        del side_px
        model: Any = hub.make_transformer(config)
        pooler = getattr(model, "pooler", None)
        if pooler is not None and next(pooler.parameters(), None) is not None:
            model.pooler = None  # trained for another task, if at all
        if not values["pretrained"]:
            normalise_by_group(model)
        network: nn.Module = model
        return network

    def features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
        sizes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        resize = sizes and model.config.image_size != pixels.shape[-1]
        found = model(pixel_values=pixels, **({"interpolate_pos_encoding": True} if resize else {}))
        own = getattr(found, "pooler_output", None)
        return _pooled(found.last_hidden_state if own is None else own)

    def load(backbone: nn.Module) -> None:
        hub.load_transformer(backbone, values["source"], values["revision"])

    source = _Source(f"hf:{request.reference}", make, features, hub.layer_parameters, load)
    return _ImageNetwork(source, values["size_px"], request.width)


VISION_ENCODERS = (
    Architecture(
        "timm",
        "an image network of timm (VGG, ResNet, Inception, ViT, ConvNeXt, ...) by its name there",
        TimmOptions,
        _timm_build,
        _timm_prepare,
    ),
    Architecture(
        "hf",
        "an image network of transformers (ViT and the like) by folder or hub id",
        Settings,
        _hf_build,
        _hf_prepare,
    ),
)
