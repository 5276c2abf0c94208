"""Published networks of sound: features as their own extractors make them, weights, rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from tests.encoders.networks import Field, publish
from xmodal_dist.encoders import Pretrained
from xmodal_dist.encoders.sound import kaldi_features
from xmodal_dist.errors import UsageError

RATE_HZ = 16_000


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers")


def _waves(*lengths: int) -> tuple[torch.Tensor, torch.Tensor, list[np.ndarray[Any, Any]]]:
    """Waves [B, N] with zeros beyond their lengths, the lengths, and each wave alone."""
    rng = np.random.default_rng(5)
    at = np.arange(max(lengths)) / RATE_HZ
    waves = [
        0.2 * np.sin(2 * np.pi * 440 * (i + 1) * at[:n]) + rng.normal(0.1, 0.02, n)
        for i, n in enumerate(lengths)
    ]
    waves = [wave.astype(np.float32) for wave in waves]
    batch = np.zeros((len(lengths), max(lengths)), np.float32)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    return torch.from_numpy(batch), torch.tensor(lengths), waves


def _encoder(field: Field) -> Any:
    encoder = field.encoder()
    assert isinstance(encoder, Pretrained)
    encoder.load_weights()
    return encoder


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("num_mels", [32, 128])
def test_features_are_those_of_the_extractor(transformers: Any, num_mels: int, tmp_path: Path) -> None:
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=num_mels, max_length=64)
    folder = publish(tmp_path, "AST", extractor.to_dict(), num_mel_bins=num_mels)
    encoder = _encoder(Field.of("audio", encoder=f"hf:{folder}"))
    wave, length, alone = _waves(
        3000, 399, 400, 8000, 16_000
    )  # shorter than the network hears, none, one, longer
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder.features(wave, length)
    rows = [0, 2, 3, 4]  # the extractor cannot take less than one frame
    expected = extractor(
        [alone[row] for row in rows], sampling_rate=RATE_HZ, return_tensors="pt"
    ).input_values
    torch.testing.assert_close(found[rows], expected, rtol=1e-3, atol=2e-3)
    assert (found[1] == found[0, -1]).all()


def test_silence_is_the_floor() -> None:
    features = kaldi_features(torch.zeros(1, 800), RATE_HZ, 16)
    assert features.shape == (1, 3, 16)
    torch.testing.assert_close(features, torch.full_like(features, float(np.log(1.192092955078125e-07))))


def test_gradients_reach_the_wave_after_predictions() -> None:
    wave = torch.linspace(0, 50, 800).sin().unsqueeze(0)
    with torch.inference_mode():
        kaldi_features(wave, RATE_HZ, 17)
    wave.requires_grad_()
    kaldi_features(wave, RATE_HZ, 17).sum().backward()
    assert wave.grad is not None and wave.grad.any()


def test_ast_gives_what_its_own_library_gives(transformers: Any, tmp_path: Path) -> None:
    folder = publish(tmp_path, "AST")
    encoder = _encoder(Field.of("audio", encoder=f"hf:{folder}"))
    wave, length, alone = _waves(6000, 12_000)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(alone, sampling_rate=RATE_HZ, return_tensors="pt")
    with torch.no_grad():
        expected = transformers.AutoModel.from_pretrained(folder).eval()(**inputs).pooler_output
        found = encoder.train().listen(wave, length)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network", ["Wav2Vec2", "Hubert"])
def test_networks_of_samples_give_what_their_own_library_gives(
    transformers: Any, network: str, tmp_path: Path
) -> None:
    folder = publish(tmp_path, network)
    encoder = _encoder(Field.of("audio", encoder=f"hf:{folder}"))
    wave, length, alone = _waves(6000, 12_000)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    # One by one: without a mask its normalisation would count padding.
    values = [extractor(one, sampling_rate=RATE_HZ, return_tensors="pt").input_values[0] for one in alone]
    mask = (torch.arange(12_000) < length[:, None]).long() if network == "Hubert" else None
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        frames = model(pad_sequence(values, batch_first=True), attention_mask=mask).last_hidden_state
        found = encoder.train().listen(wave, length)
    ends = model._get_feat_extract_output_lengths(length).tolist()
    assert ends[0] < ends[1] == frames.shape[1]
    expected = torch.stack([row[:end].mean(dim=0) for row, end in zip(frames, ends, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_what_lies_beyond_the_end_is_not_heard(transformers: Any, tmp_path: Path) -> None:
    encoder = _encoder(Field.of("audio", encoder=f"hf:{publish(tmp_path, 'Hubert')}")).eval()
    wave, length, _ = _waves(6000, 12_000)
    noisy = torch.where(torch.arange(12_000) < length[:, None], wave, 0.5)
    with torch.no_grad():
        before, after = (encoder({"wave": w, "length": length}) for w in (wave, noisy))
    torch.testing.assert_close(before, after)


def test_the_rate_is_the_networks(transformers: Any, tmp_path: Path) -> None:
    folder = publish(tmp_path, "Wav2Vec2")
    assert Field.of("audio", encoder=f"hf:{folder}").fitted.values["sample_rate_hz"] == RATE_HZ
    with pytest.raises(UsageError, match="sample_rate_hz is 8000, but hf:.* hears at 16000: leave it out"):
        Field.of("audio", encoder=f"hf:{folder}", sample_rate_hz=8000)


def test_networks_of_other_things_are_refused(transformers: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is of type 'vit'; of sound known are"):
        Field.of("audio", encoder=f"hf:{publish(tmp_path, 'ViT')}")
