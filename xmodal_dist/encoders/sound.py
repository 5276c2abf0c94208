"""Pretrained networks of sound from transformers, by folder or hub id, on ``wave`` [B, N] and ``length`` [B].

wav2vec 2.0 and its kin (HuBERT, WavLM, ...) hear samples; the Audio Spectrogram Transformer gets its own log-mel
features, computed here in batch, as its feature extractor computes them one by one.

Legend of tensor shapes: B rows, N samples, T frames, M mel bands.
"""

from __future__ import annotations

import functools
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders import hub
from xmodal_dist.encoders.base import Architecture, Prepared, Pretrained, Request
from xmodal_dist.encoders.preprocessing import fetch_preprocessing
from xmodal_dist.encoders.waves import mask_of, mean_within, standardise
from xmodal_dist.errors import UsageError
from xmodal_dist.settings import Settings

__all__ = ["SOUND_ENCODERS", "kaldi_features"]

_CONFIG_FILE, _PROCESSOR_FILE = "config.json", "preprocessor_config.json"
_SPECTROGRAM_MODEL = "audio-spectrogram-transformer"
_FRAME_S, _HOP_S = 0.025, 0.010
_LOWEST_HZ = 20.0
_PREEMPHASIS = 0.97
_MEL_FLOOR = 1.192092955078125e-07


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept may be needed for a gradient later
def _mel_filters(rate_hz: int, num_fft: int, num_mels: int) -> torch.Tensor:
    """Kaldi's triangles [bins, M], of height 1, straight on the scale mel(f) = 1127 ln(1 + f / 700)."""
    bins_hz = torch.linspace(0, rate_hz / 2, num_fft // 2 + 1, dtype=torch.float64)
    ends_hz = torch.tensor([_LOWEST_HZ, rate_hz // 2], dtype=torch.float64)
    mels, ends = (1127 * torch.log1p(hz / 700) for hz in (bins_hz, ends_hz))
    edges = torch.linspace(float(ends[0]), float(ends[1]), num_mels + 2, dtype=torch.float64)
    rise = (mels[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - mels[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0).to(torch.float32)


def kaldi_features(wave: torch.Tensor, rate_hz: int, num_mels: int) -> torch.Tensor:
    """Log-mel features as Kaldi's (Povey et al. 2011), without dither: [B, N] at full scale 1 -> [B, T, M].

    Frames of 25 ms every 10 ms, whole ones only: mean removed, pre-emphasis 0.97, Hann window.
    """
    size, hop = _frame_samples(rate_hz)
    num_fft = 1 << (size - 1).bit_length()
    frames = F.pad(wave.float(), (0, max(0, size - wave.shape[1]))).unfold(1, size, hop)
    frames = frames - frames.mean(dim=2, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
    window = torch.hann_window(size, periodic=False, device=wave.device)
    spectrum = torch.fft.rfft((frames - _PREEMPHASIS * before) * window, n=num_fft)
    power = spectrum.real.square() + spectrum.imag.square()
    filters = _mel_filters(rate_hz, num_fft, num_mels).to(wave.device)
    return torch.matmul(power, filters).clamp(min=_MEL_FLOOR).log()


def _frame_samples(rate_hz: int) -> tuple[int, int]:
    return round(_FRAME_S * rate_hz), round(_HOP_S * rate_hz)


class _SoundNetwork(Pretrained):
    """A published backbone on sound, under a norm and a linear layer of its own.

    Args:
        backbone: the network.
        num_features: what it makes of a record.
        width: features per row.
        values: of the field: where the published weights are.
    """

    def __init__(self, backbone: nn.Module, num_features: int, width: int, values: Mapping[str, Any]) -> None:
        super().__init__(backbone, hub.layer_parameters(backbone), num_features)
        self.source: tuple[str, str | None] = (values["source"], values["revision"])
        self.norm = nn.LayerNorm(num_features)
        self.project = nn.Linear(num_features, width)

    def see(self, tensors: Tensors) -> torch.Tensor:
        """The backbone's features [B, F] of ``wave`` [B, N], what lies beyond ``length`` [B] left out."""
        return self.listen(tensors["wave"], tensors["length"])

    def head(self, seen: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """Features [B, width], normed and projected."""
        features: torch.Tensor = self.project(self.norm(seen))
        return features

    @abstractmethod
    def listen(self, wave: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """The backbone's features, [B, F]."""

    def load_weights(self) -> None:
        """Fetch the backbone's published weights."""
        hub.load_transformer(self.backbone, *self.source)


class _Samples(_SoundNetwork):
    """wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477) and its kin; the mean of the frames that hold sound.

    Args:
        backbone: the network.
        processor: settings of its feature extractor.
        width: features per row.
        values: of the field: where the published weights are.
    """

    def __init__(
        self, backbone: nn.Module, processor: Mapping[str, Any], width: int, values: Mapping[str, Any]
    ) -> None:
        config: Any = backbone.config
        self.normalises = bool(processor.get("do_normalize", True))
        # Networks whose first norm is taken over time were trained without a mask.
        self.masks = bool(processor.get("return_attention_mask", False))
        self.convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.least_samples = 1
        for kernel, stride in reversed(self.convolutions):
            self.least_samples = (self.least_samples - 1) * stride + kernel
        wave = torch.zeros(1, 2 * self.least_samples)
        hub.settle(backbone, lambda: self._frames(backbone, wave, None))
        super().__init__(backbone, config.hidden_size, width, values)

    def listen(self, wave: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Mean over the frames that hold sound."""
        wave = F.pad(wave, (0, max(0, self.least_samples - wave.shape[1])))
        length = length.clamp(min=self.least_samples)
        inside = mask_of(length, wave.shape[1])
        if self.normalises:
            wave = standardise(wave, inside)
        frames = self._frames(self.backbone, wave, inside.long() if self.masks else None)
        for kernel, stride in self.convolutions:
            length = (length - kernel) // stride + 1
        return mean_within(frames, mask_of(length, frames.shape[1]))

    @staticmethod
    def _frames(backbone: nn.Module, wave: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        frames: torch.Tensor = backbone(wave, attention_mask=mask).last_hidden_state
        return frames


class _Spectrogram(_SoundNetwork):
    """The Audio Spectrogram Transformer (Gong et al. 2021, arXiv:2104.01778) on its own log-mel features.

    It sees ``max_length`` frames of 10 ms of every recording: padding where there is less, nothing of what is more.

    Args:
        backbone: the network.
        processor: settings of its feature extractor.
        width: features per row.
        values: of the field: where the published weights are, and the rate.
    """

    def __init__(
        self,
        backbone: nn.Module,
        processor: Mapping[str, Any],
        width: int,
        values: Mapping[str, Any],
    ) -> None:
        config: Any = backbone.config
        self.rate_hz, self.num_mels = int(values["sample_rate_hz"]), int(config.num_mel_bins)
        self.num_frames = int(config.max_length)
        self.mean, self.std = 0.0, 1.0
        if processor.get("do_normalize", True):
            self.mean, self.std = float(processor["mean"]), 2 * float(processor["std"])
        features = torch.zeros(1, self.num_frames, self.num_mels)
        hub.settle(backbone, lambda: backbone(features).pooler_output)
        super().__init__(backbone, config.hidden_size, width, values)

    def listen(self, wave: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """The network's pooled output."""
        found: torch.Tensor = self.backbone(self.features(wave, length)).pooler_output
        return found

    def features(self, wave: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """[B, max_length, M] as the feature extractor of transformers makes them, record by record."""
        with torch.autocast(wave.device.type, enabled=False):
            found = kaldi_features(wave, self.rate_hz, self.num_mels)[:, : self.num_frames]
        size, hop = _frame_samples(self.rate_hz)
        whole = mask_of((length - size).div(hop, rounding_mode="floor") + 1, found.shape[1])
        found = F.pad(found * whole.unsqueeze(2), (0, 0, 0, self.num_frames - found.shape[1]))
        normal: torch.Tensor = (found - self.mean) / self.std
        return normal


def _prepare(reference: str, pretrained: bool) -> Prepared:
    """The rate that the network hears at, and its configuration."""
    source = hub.source_of(reference)
    config, revision = hub.fetch_config(source)
    network = json.loads(config)
    if network["model_type"] != _SPECTROGRAM_MODEL and not (
        "conv_kernel" in network and "conv_stride" in network
    ):
        raise UsageError(
            f"encoder: hf:{reference} is of type {network['model_type']!r}; of sound known are wav2vec 2.0, HuBERT and "
            f"their kin, which hear samples, and {_SPECTROGRAM_MODEL}"
        )
    processor = fetch_preprocessing(source)
    return Prepared(
        {"source": source, "revision": revision, "sample_rate_hz": int(processor["sampling_rate"])},
        {_CONFIG_FILE: config, _PROCESSOR_FILE: json.dumps(processor)},
    )


def _build(request: Request) -> nn.Module:
    files, values = request.files, request.values
    backbone = hub.make_transformer(files[_CONFIG_FILE])
    processor = json.loads(files[_PROCESSOR_FILE])
    config: Any = backbone.config
    if config.model_type == _SPECTROGRAM_MODEL:
        return _Spectrogram(backbone, processor, request.width, values)
    return _Samples(backbone, processor, request.width, values)


SOUND_ENCODERS = (
    Architecture(
        "hf",
        "a sound network of transformers (AST, wav2vec 2.0, HuBERT) by folder or hub id",
        Settings,
        _build,
        _prepare,
        frozenset({"wave"}),
    ),
)
