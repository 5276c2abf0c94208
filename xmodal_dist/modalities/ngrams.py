"""Texts to sets of words, pairs of neighbouring words, and pieces of words: what TF-IDF counts.

Pieces are the runs of 2 to 5 characters of a word and the spaces around it, as in fastText (Bojanowski et al. 2017,
arXiv:1607.04606); they tell that words are related that a small sample has seen only one of.
"""

from __future__ import annotations

import array
import functools
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["FIRST_ID", "Ngrams", "learn_ngrams", "open_ngrams"]

FIRST_ID = 2
"""Of the vocabulary; 0 is no token, and 1 stands in texts of which the vocabulary has nothing."""

_NOTHING_KNOWN = 1
_PIECE = "\t"
_WORD = re.compile(r"\w+")
_LENGTHS = range(2, 6)
_MAX_WORD_CHARS = 64
_MAX_KNOWN_WORDS = 200_000


def learn_ngrams(records: Iterable[Sequence[str]], vocab_size: int, min_frequency: int) -> str:
    """The vocabulary of some records' texts as JSON: what most of them have, words and pairs before pieces.

    Equal samples give equal ones.

    Args:
        records: each record's texts.
        vocab_size: most entries.
        min_frequency: fewest records that an entry is in.
    """
    counts: Counter[str] = Counter()
    for texts in records:
        counts.update({name for text in texts for names in _names(_words(text)) for name in names})
    known = sorted((-count, name) for name, count in counts.items() if count >= min_frequency)
    kept = [name for _, name in known[: vocab_size - FIRST_ID]]
    return json.dumps(sorted(kept, key=_is_piece), ensure_ascii=False)


@functools.lru_cache(maxsize=16)
def open_ngrams(content: str) -> Ngrams:
    """The tokenizer of a vocabulary; all readers of a process share it."""
    return Ngrams(json.loads(content))


class Ngrams:
    """See :class:`xmodal_dist.modalities.tokenizer.TextTokenizer`; a record has each id at most once.

    From ``first_piece`` on, ids are of pieces of words.
    """

    unknown = (_NOTHING_KNOWN, FIRST_ID)
    marks: tuple[int, ...] = ()

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocab_size = len(vocabulary) + FIRST_ID
        self.first_piece = FIRST_ID + sum(not _is_piece(name) for name in vocabulary)
        self._ids = {name: place for place, name in enumerate(vocabulary, FIRST_ID)}
        self._pieces: dict[str, tuple[int, ...]] = {}

    def encode(self, columns: Sequence[Sequence[str | None]], num_tokens: int) -> list[bytes]:
        """Each record's ids as int32 bytes, at most ``num_tokens``, in the order of its words."""
        rows = []
        for texts in zip(*columns, strict=True):
            words = [_words(text) for text in texts if text and text.strip()]
            found = dict.fromkeys(itertools.chain.from_iterable(self._by_word(words, num_tokens)))
            ids = list(found)[:num_tokens] or ([_NOTHING_KNOWN] if any(words) else [])
            rows.append(array.array("i", ids).tobytes())
        return rows

    def words(self, texts: Sequence[str], num_tokens: int) -> list[tuple[str, int]]:
        """Each word of a record's texts, and how many ids it adds to those of the words before it."""
        words, seen, counts = [_words(text) for text in texts], set[int](), []
        for word, ids in zip(
            itertools.chain.from_iterable(words), self._by_word(words, num_tokens), strict=False
        ):
            new = [i for i in dict.fromkeys(ids) if i not in seen][: num_tokens - len(seen)]
            seen.update(new)
            counts.append((word, len(new)))
        if not seen and counts:
            counts[0] = (counts[0][0], 1)
        return counts

    def _by_word(self, texts: Sequence[list[str]], num_words: int) -> Iterator[list[int]]:
        """The ids of each word: its own, its pieces', and that of the pair with the next one."""
        for words in texts:
            for word, following in zip(words[:num_words], [*words[1:], ""], strict=False):
                pair = self._ids.get(f"{word} {following}") if following else None
                yield [*self._of_word(word), *(() if pair is None else (pair,))]

    def _of_word(self, word: str) -> tuple[int, ...]:
        known = self._pieces.get(word)
        if known is None:
            known = tuple(self._ids[name] for name in _pieces(word) if name in self._ids)
            if len(self._pieces) < _MAX_KNOWN_WORDS:
                self._pieces[word] = known
        return known


def _words(text: str) -> list[str]:
    """Its words in lower case and NFKC, each cut at a length that no word of a language has."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return [match.group()[:_MAX_WORD_CHARS] for match in _WORD.finditer(folded)]


def _names(words: Sequence[str]) -> Iterator[list[str]]:
    """Names of vocabulary entries, word by word."""
    for word, following in itertools.zip_longest(words, words[1:]):
        yield [*_pieces(word), *([f"{word} {following}"] if following else [])]


def _pieces(word: str) -> list[str]:
    """The word, and its pieces; a piece is marked, so that it is no word."""
    framed = f" {word} "
    parts = (framed[at : at + n] for n in _LENGTHS for at in range(len(framed) - n + 1))
    return [word, *(f"{_PIECE}{part}" for part in parts)]


def _is_piece(name: str) -> bool:
    return name.startswith(_PIECE)
