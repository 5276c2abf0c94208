"""Texts to token ids: by a tokenizer learned from the sample, or by the one that a pretrained network came with.

Learned: words between white space, NFKC, lower case, byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2, so
nothing is unknown), by Hugging Face ``tokenizers``. A text's tokens are its words' tokens one after the other: so a
word is taken apart once and then looked up.
"""

from __future__ import annotations

import array
import bisect
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

__all__ = ["ID_BYTES", "MAX_TOKEN_CHARS", "TextTokenizer", "learn", "open_tokenizer"]

# Readers run in threads of their own; a second pool inside each call fights them, and warns after every fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_Frame = tuple[tuple[int, ...], ...]
"""Marks before, between and after texts."""

ID_BYTES = 4
"""Bytes of an id."""
MAX_TOKEN_CHARS = 32
"""Most characters of a learned token; no text needs more than its tokens times this."""

_PAD, _SEPARATOR = "[PAD]", "[SEP]"
_MAX_KNOWN_WORDS, _MAX_KNOWN_CHARS = 200_000, 64
_FIRST_BYTE_ID, _FIRST_MERGED_ID = 2, 258


class TextTokenizer(Protocol):
    """What turns the texts of records into ids; 0 is no token. Thread-safe."""

    vocab_size: int
    """Ids that it gives are below."""
    unknown: tuple[int, int]
    """First and last id, exclusive, of tokens that stand for what the vocabulary has no piece of."""
    marks: tuple[int, ...]
    """Ids that stand in every text, whatever it says."""

    def encode(self, columns: Sequence[Sequence[str | None]], num_tokens: int) -> list[bytes]:
        """Each record's ids as int32 bytes, at most ``num_tokens``; none for a record whose columns are all blank.

        Texts are cut at the most characters that so many tokens can hold, so that a huge one costs no time.
        """

    def words(self, texts: Sequence[str], num_tokens: int) -> list[tuple[str, int]]:
        """The words between white space of one record's texts, none of them blank, in the order of their ids.

        Returns:
            Each word and how many of the record's ids are its own; "" for marks around and between texts.
        """


def learn(sample: Sequence[str], vocab_size: int, min_frequency: int) -> str:
    """A tokenizer of some texts as JSON; equal ones for equal samples."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[_PAD, _SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=MAX_TOKEN_CHARS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return str(tokenizer.to_str())


def open_tokenizer(content: str, template: Mapping[str, Any] | None) -> TextTokenizer:
    """The tokenizer of a file; all readers of a process share it.

    Args:
        content: the file.
        template: how a pretrained network wants its texts framed, as
            :func:`xmodal_dist.encoders.transformers_text.prepare` found it; None for a learned tokenizer.
    """
    if template is None:
        return _learned(content)
    frame = (tuple(template["before"]), tuple(template["between"]), tuple(template["after"]))
    return _framed(content, frame, template["unknown"], template["zero"])


class _Words(dict[str, bytes]):
    """A word's ids as int32 bytes; a new word goes through the tokenizer and, while there is room, is kept."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> bytes:
        ids = _bytes(self._tokenizer.encode(word, add_special_tokens=False).ids)
        if len(word) <= _MAX_KNOWN_CHARS and len(self) < _MAX_KNOWN_WORDS:
            self[word] = ids
        return ids


class _Learned:
    """Word by word; a separator between columns."""

    unknown = (_FIRST_BYTE_ID, _FIRST_MERGED_ID)
    marks: tuple[int, ...] = ()

    def __init__(self, content: str) -> None:
        tokenizer = Tokenizer.from_str(content)
        self.vocab_size = int(tokenizer.get_vocab_size())
        self._words = _Words(tokenizer)

    def encode(self, columns: Sequence[Sequence[str | None]], num_tokens: int) -> list[bytes]:
        words = self._words
        most_chars, most_bytes = num_tokens * MAX_TOKEN_CHARS, num_tokens * ID_BYTES
        encoded = [
            [b"".join(map(words.__getitem__, text[:most_chars].split())) if text else b"" for text in texts]
            for texts in columns
        ]
        if len(encoded) == 1:
            return [row[:most_bytes] for row in encoded[0]]
        separator = words[_SEPARATOR]
        return [separator.join(filter(None, row))[:most_bytes] for row in zip(*encoded, strict=True)]

    def words(self, texts: Sequence[str], num_tokens: int) -> list[tuple[str, int]]:
        known = self._words
        counts = [[(word, len(known[word]) // ID_BYTES) for word in text.split()] for text in texts]
        return _cut(_joined(counts, 1), num_tokens)


class _Framed:
    """Text by text, as some tokenizers join words; the marks that the network was trained with around and between.

    Where the tokenizer's 0 is a token, ``zero`` stands for it, which no text has.
    """

    def __init__(self, content: str, frame: _Frame, unknown: int | None, zero: int) -> None:
        self._tokenizer, self._zero = Tokenizer.from_str(content), zero
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size = max(int(self._tokenizer.get_vocab_size()), zero + 1)
        self.unknown = (0, 0) if unknown is None else (unknown, unknown + 1)
        before, between, after = ([i or zero for i in part] for part in frame)
        self.marks = tuple(sorted({*before, *between, *after}))
        self._before, self._between, self._after = _bytes(before), _bytes(between), _bytes(after)

    def encode(self, columns: Sequence[Sequence[str | None]], num_tokens: int) -> list[bytes]:
        most_bytes = self._room(num_tokens) * ID_BYTES
        rows: list[bytes] = []
        encoded = [self._texts([_trimmed(text, num_tokens) for text in texts]) for texts in columns]
        for row in zip(*encoded, strict=True):
            inner = self._between.join(filter(None, row))[:most_bytes]
            rows.append(self._before + inner + self._after if inner else b"")
        return rows

    def words(self, texts: Sequence[str], num_tokens: int) -> list[tuple[str, int]]:
        counts = [self._counts(_trimmed(text, num_tokens)) for text in texts]
        inner = _cut(_joined(counts, len(self._between) // ID_BYTES), self._room(num_tokens))
        return [("", len(self._before) // ID_BYTES), *inner, ("", len(self._after) // ID_BYTES)]

    def _room(self, num_tokens: int) -> int:
        return max(0, num_tokens - (len(self._before) + len(self._after)) // ID_BYTES)

    def _texts(self, texts: list[str]) -> list[bytes]:
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [_bytes(i or self._zero for i in e.ids) for e in found]

    def _counts(self, text: str) -> list[tuple[str, int]]:
        spans = [(match.end(), match.group()) for match in re.finditer(r"\S+", text)]
        counts = [0] * len(spans)
        for start, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets:
            # White space before a word belongs to it.
            counts[min(bisect.bisect_right(spans, (start, "\U0010ffff")), len(spans) - 1)] += 1
        return [(word, count) for (_, word), count in zip(spans, counts, strict=True)]


def _trimmed(text: str | None, num_tokens: int) -> str:
    return (text or "")[: num_tokens * MAX_TOKEN_CHARS].strip()


def _joined(counts: Sequence[list[tuple[str, int]]], between: int) -> list[tuple[str, int]]:
    """Texts one after the other, with marks between."""
    joined = list(counts[0]) if counts else []
    for more in counts[1:]:
        joined += [("", between), *more]
    return joined


def _cut(counts: Sequence[tuple[str, int]], num_tokens: int) -> list[tuple[str, int]]:
    """The words with what is left of them in the first ``num_tokens`` ids."""
    left, cut = num_tokens, []
    for word, count in counts:
        cut.append((word, min(count, left)))
        left -= cut[-1][1]
    return cut


def _bytes(ids: Iterable[int]) -> bytes:
    return array.array("i", ids).tobytes()


@functools.lru_cache(maxsize=16)
def _learned(content: str) -> _Learned:
    return _Learned(content)


@functools.lru_cache(maxsize=16)
def _framed(content: str, frame: _Frame, unknown: int | None, zero: int) -> _Framed:
    return _Framed(content, frame, unknown, zero)
