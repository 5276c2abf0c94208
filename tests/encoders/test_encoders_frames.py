"""Encoders of clips: frames that are not there count for nothing, and two of three ways of pooling see the order."""

from __future__ import annotations

import pytest
import torch
from pydantic import Field
from torch import nn

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders import Architecture, EncoderSettings, Request, build
from xmodal_dist.encoders.frames import VIDEO_ENCODERS, AttentionPooling, GruPooling, MeanPooling, of_frames
from xmodal_dist.settings import Settings

FRAMES, WIDTH = 5, 16
POOLINGS = ("mean", "gru", "attention")


class _Settings(EncoderSettings):
    architectures = VIDEO_ENCODERS
    encoder: str = "cnn"


def _encoder(pooling: str) -> nn.Module:
    torch.manual_seed(0)
    values = {"size_px": 12, "num_frames": FRAMES}
    return build(_Settings(encoder_options={"pooling": pooling}), values, {}, WIDTH).eval()


def _clips(rows: int = 4) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(rows, FRAMES, 3, 12, 12, generator=generator)
    return {"pixels": pixels, "length": torch.tensor([5, 3, 1, 0], dtype=torch.int32)[:rows]}


def _pooling(name: str, width: int) -> nn.Module:
    torch.manual_seed(0)
    return {
        "mean": MeanPooling,
        "gru": lambda: GruPooling(width),
        "attention": lambda: AttentionPooling(width),
    }[name]()  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_stands_where_no_frame_is_does_not_matter(pooling: str) -> None:
    clips = _clips()
    other = clips["pixels"].clone()
    for row, length in enumerate((5, 3, 1, 1)):
        other[row, length:] = 100.0
    encoder = _encoder(pooling)
    torch.testing.assert_close(encoder(clips), encoder({**clips, "pixels": other}))
    # Nor how many frames there is room for.
    short = {"pixels": clips["pixels"][1:3, :3], "length": clips["length"][1:3]}
    torch.testing.assert_close(encoder(short), encoder(clips)[1:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_no_row_depends_on_another_and_every_parameter_gets_a_gradient(pooling: str) -> None:
    encoder, clips = _encoder(pooling), _clips()
    whole = encoder(clips)
    for row in range(4):
        alone = encoder({name: tensor[row : row + 1] for name, tensor in clips.items()})
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-4, atol=1e-5)
    whole.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    moved = [p.grad.any() for p in encoder.parameters()]  # type: ignore[union-attr]
    assert all(moved)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_only_the_mean_is_blind_to_the_order(pooling: str) -> None:
    encoder, clips = _encoder(pooling), _clips(1)
    backwards = {**clips, "pixels": clips["pixels"].flip(1)}
    assert torch.allclose(encoder(clips), encoder(backwards), atol=1e-5) == (pooling == "mean")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_direction_is_learned_where_order_is_seen(pooling: str) -> None:
    """Records of one walk of features, forwards or backwards, of 3 to 5 steps: alike but for the order."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(400, 1, 8, generator=generator)
    walk = start + 0.7 * torch.arange(FRAMES)[None, :, None] * torch.ones(8)
    length = torch.randint(3, FRAMES + 1, (400,), generator=generator)
    shown = torch.arange(FRAMES) < length[:, None]
    backwards = walk.gather(
        1, (length[:, None] - 1 - torch.arange(FRAMES)).clamp(min=0)[..., None].expand(-1, -1, 8)
    )
    labels = torch.arange(400) % 2
    features = torch.where((labels == 1)[:, None, None], walk, backwards) * shown.unsqueeze(-1)
    features = torch.cat([features, features.new_ones(400, FRAMES, 8)], dim=2)
    net = nn.ModuleList([_pooling(pooling, WIDTH), nn.Linear(WIDTH, 2)])
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    for _ in range(120):
        optimizer.zero_grad()
        logits = net[1](net[0](features[:300], shown[:300]))
        nn.functional.cross_entropy(logits, labels[:300]).backward()
        optimizer.step()
    accuracy = (net[1](net[0](features[300:], shown[300:])).argmax(1) == labels[300:]).float().mean()
    assert accuracy < 0.65 if pooling == "mean" else accuracy > 0.95


def test_a_family_of_image_networks_is_one_of_clips_with_its_options() -> None:
    class Options(Settings):
        scale: float = Field(1.0, gt=0)

    class Net(nn.Module):
        def __init__(self, request: Request) -> None:
            super().__init__()
            assert isinstance(request.options, Options)
            self.scale, self.width = request.options.scale, request.width

        def forward(self, tensors: Tensors) -> torch.Tensor:
            assert tensors["keys"].shape[0] == tensors["pixels"].shape[0]
            return tensors["pixels"].mean(dim=(1, 2, 3)).unsqueeze(1).repeat(1, self.width) * self.scale

    asked: list[tuple[str, bool]] = []

    def prepare(reference: str, pretrained: bool) -> None:
        asked.append((reference, pretrained))

    images = Architecture("zoo", "animals", Options, Net, prepare)  # type: ignore[arg-type]

    class ZooSettings(EncoderSettings):
        architectures = (of_frames(images),)
        encoder: str = "zoo:cat"

    settings = ZooSettings(encoder_options={"scale": 3.0, "pooling": "mean"})
    settings.prepare()
    assert asked == [("cat", True)]
    clips = {**_clips(), "keys": torch.arange(4)}
    expected = clips["pixels"][0].mean() * 3
    torch.testing.assert_close(build(settings, {}, {}, WIDTH)(clips)[0], expected.expand(WIDTH))
    with pytest.raises(ValueError, match="greater than 0"):
        ZooSettings(encoder_options={"scale": 0.0})
