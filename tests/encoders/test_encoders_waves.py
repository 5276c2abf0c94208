"""Convolutions over raw sound, and what the modality hands to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.encoders.networks import Field
from xmodal_dist.encoders.waves import WaveEncoder, WaveOptions, mean_within, standardise


def _encoder() -> WaveEncoder:
    torch.manual_seed(0)
    return WaveEncoder(4000, 8, WaveOptions(channels=(16, 24, 32))).eval()


@settings(max_examples=20, deadline=None)
@given(length=st.integers(0, 900), padding=st.integers(0, 500), beyond=st.floats(-1, 1))
def test_padding_changes_nothing(length: int, padding: int, beyond: float) -> None:
    encoder = _encoder()
    wave = torch.linspace(0, 60, 900).sin().unsqueeze(0)
    short = torch.cat([wave[:, :length], torch.full((1, 900 - length), beyond)], dim=1)
    long = torch.cat([wave[:, :length], torch.zeros(1, 900 - length + padding)], dim=1)
    with torch.no_grad():
        features = [encoder(w, torch.tensor([length])) for w in (short, long)]
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-4)


def test_loudness_does_not_matter_and_pitch_does() -> None:
    encoder, length = _encoder(), torch.tensor([900])
    low, high = (torch.linspace(0, end, 900).sin().unsqueeze(0) for end in (60, 400))
    with torch.no_grad():
        plain, soft, other = (encoder(wave, length) for wave in (low, 0.1 * low, high))
    torch.testing.assert_close(plain, soft, rtol=1e-2, atol=1e-2)
    assert (plain - other).abs().max() > 0.1


def test_standardise_and_mean_within_see_the_mask_alone() -> None:
    mask = torch.tensor([[True, True, True, False], [False] * 4])
    found = standardise(torch.tensor([[1.0, 2.0, 3.0, 99.0], [5.0, 5.0, 5.0, 5.0]]), mask)
    torch.testing.assert_close(found[0, :3], torch.tensor([-1.0, 0.0, 1.0]) * 1.5**0.5, rtol=1e-4, atol=1e-4)
    assert not found[0, 3] and not found[1].any()
    assert mean_within(torch.arange(8.0).view(2, 4, 1), mask).flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("train", [False, True])
def test_the_modality_computes_what_is_asked_for(train: bool) -> None:
    wave, spectrogram = (Field.of("audio", encoder=name).tensors(train) for name in ("wave_cnn", "cnn"))
    assert set(wave) == {"wave", "length"} and set(spectrogram) == {"spectrogram"}
    assert wave["wave"].dtype == torch.float32
    ends = wave["length"]
    assert (ends[:-1] > 0).all() and not ends[-1] and (ends <= wave["wave"].shape[1]).all()
    beyond = torch.arange(wave["wave"].shape[1]) >= ends[:, None]
    assert not wave["wave"][beyond].any()
    inside = wave["wave"][0, : ends[0]]
    assert (inside == 0).float().mean() < 0.3  # shifted by a tenth and silent for a tenth at most
