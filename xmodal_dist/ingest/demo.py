"""A small real-life-like source that needs no network: handwritten digits, seen, heard and written down badly.

Images are scikit-learn's 1,797 handwritten digits (E. Alpaydin, C. Kaynak, UCI ML repository, 1998), enlarged, noisy
and partly erased; recordings are the telephone key tones (DTMF, ITU-T Q.23) of the digit in noise; texts are a hasty
transcript of its name. Each is missing at times and none is enough alone, so that combining them pays.
"""

from __future__ import annotations

import csv
import io
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

__all__ = ["write_demo_source"]

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ROW_HZ = (697, 770, 852, 941)
_COLUMN_HZ = (1209, 1336, 1477)
_KEYPAD = ("123", "456", "789", "*0#")
_SIDE_PX = 32
_RATE_HZ = 8000
_MISSING = 0.15
_DROWNED_RECORDINGS = 0.10
_WRONG_WORDS = 0.08
_FILLERS = ("um", "uh", "it says", "i think", "maybe", "please", "number", "the digit", "that is", "ok")


def write_demo_source(directory: str | Path, seed: int = 0) -> Path:
    """Write the images, the recordings and the table that lists them; equal seeds give equal files.

    Args:
        directory: local folder, made if it is not there.
        seed: seed of all noise.

    Returns:
        Path of ``digits.csv`` with columns ``id``, ``label`` ("0" to "9"), ``image`` and ``audio`` (paths relative to
        it, empty where missing) and ``transcript`` (empty where missing).
    """
    folder = Path(directory)
    for name in ("image", "audio"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    data = load_digits()
    rng = np.random.default_rng(seed)
    rows = []
    for index, (pixels, digit) in enumerate(zip(data.images, data.target, strict=True)):
        record_id = f"digit-{index:04d}"
        present = _present(rng)
        image, audio = f"image/{record_id}.png", f"audio/{record_id}.wav"
        # Everything is drawn, also where it is then missing: one record's noise does not depend on another's.
        payloads = (
            _png(_disturbed(pixels, rng)),
            _wav(_key_tone(int(digit), rng)),
            _transcript(int(digit), rng),
        )
        for name, payload, there in zip((image, audio), payloads[:2], present[:2], strict=True):
            (folder / name).unlink(missing_ok=True)  # of an earlier call with another seed
            if there:
                (folder / name).write_bytes(payload)
        values = (image, audio, payloads[2])
        rows.append([record_id, digit, *(v if p else "" for v, p in zip(values, present, strict=True))])
    table = folder / "digits.csv"
    with table.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["id", "label", "image", "audio", "transcript"], *rows])
    return table


def _present(rng: np.random.Generator) -> NDArray[np.bool_]:
    """[3] which of image, audio and text a record has; one at least."""
    present = rng.random(3) >= _MISSING
    if not present.any():
        present[rng.integers(3)] = True
    return present


def _disturbed(pixels: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """[32, 32] grey levels of an 8x8 digit (0 to 16): enlarged, a rectangle erased, noise added."""
    small = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
    large = np.asarray(small.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC), dtype=np.float64).copy()
    height, width = rng.integers(_SIDE_PX // 4, _SIDE_PX * 5 // 8, 2)
    top, left = rng.integers(0, _SIDE_PX - height + 1), rng.integers(0, _SIDE_PX - width + 1)
    large[top : top + height, left : left + width] = rng.uniform(0, 255)
    large += rng.normal(0, rng.uniform(20, 80), large.shape)
    return np.clip(large, 0, 255).astype(np.uint8)


def _key_tone(digit: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """0.3 to 0.6 s of the digit's two tones in white noise, in part of the recordings drowned by it."""
    row = next(i for i, keys in enumerate(_KEYPAD) if str(digit) in keys)
    column = _KEYPAD[row].index(str(digit))
    time_s = np.arange(int(_RATE_HZ * rng.uniform(0.3, 0.6))) / _RATE_HZ
    phases = rng.uniform(0, 2 * np.pi, (2, 1))
    tone = np.sin(2 * np.pi * np.array([[_ROW_HZ[row]], [_COLUMN_HZ[column]]]) * time_s + phases).sum(axis=0)
    drowned = rng.random() < _DROWNED_RECORDINGS
    signal_to_noise_db = rng.uniform(-32, -26) if drowned else rng.uniform(-12, 3)
    noise = rng.normal(0, 10 ** (-signal_to_noise_db / 20), len(time_s))
    mixed = tone + noise
    samples: NDArray[np.int16] = (mixed / np.abs(mixed).max() * rng.uniform(0.3, 0.9) * 32767).astype(
        np.int16
    )
    return samples


def _transcript(digit: int, rng: np.random.Generator) -> str:
    """The digit's name among filler words, mistyped, or now and then another's name."""
    wrong = rng.random() < _WRONG_WORDS
    word = _NAMES[(digit + rng.integers(1, 10)) % 10 if wrong else digit]
    for _ in range(rng.integers(0, 3)):
        word = _mistyped(word, rng)
    fillers = [_FILLERS[i] for i in rng.integers(0, len(_FILLERS), rng.integers(0, 4))]
    before = rng.integers(0, len(fillers) + 1)
    return " ".join([*fillers[:before], word, *fillers[before:]])


def _mistyped(word: str, rng: np.random.Generator) -> str:
    """One letter dropped, doubled or swapped with the next; a word of one letter stays."""
    if len(word) < 2:
        return word
    at = int(rng.integers(0, len(word) - 1))
    dropped, doubled = word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return (dropped, doubled, swapped)[rng.integers(3)]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    return sink.getvalue()


def _wav(samples: NDArray[np.int16]) -> bytes:
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())
    return sink.getvalue()
