"""Text: one or more columns to token ids.

The vocabulary is learned from the train split, or the one that a pretrained encoder came with.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from xmodal_dist.batch import Arrays, Tensors
from xmodal_dist.encoders import EncoderSettings, build
from xmodal_dist.encoders.ngrams import NGRAMS
from xmodal_dist.encoders.tokens import TEXT_ENCODERS
from xmodal_dist.encoders.transformers_text import PRETRAINED_TEXT_ENCODERS, TOKENIZER_FILE
from xmodal_dist.errors import DecodeError
from xmodal_dist.modalities.base import Decoded, FieldSettings, Fitted, Modality
from xmodal_dist.modalities.ngrams import learn_ngrams, open_ngrams
from xmodal_dist.modalities.tokenizer import ID_BYTES, MAX_TOKEN_CHARS, TextTokenizer, learn, open_tokenizer
from xmodal_dist.randomness import uniform_like

__all__ = ["MODALITY", "NGRAM_FILE", "TextModality", "TextSettings"]

_STREAM_DROPOUT = 301
_RENDER_MAX_CHARS = 500
_NGRAM_VOCAB, _PIECE_VOCAB = 60_000, 8_000
_NGRAMS_PER_TOKEN = 16
NGRAM_FILE = "ngrams.json"
"""Name of a text field's vocabulary of n-grams among its files."""


class TextSettings(EncoderSettings, FieldSettings):
    """Settings of a text field."""

    architectures = (*TEXT_ENCODERS, NGRAMS, *PRETRAINED_TEXT_ENCODERS)

    kind: Literal["text"] = "text"
    encoder: str = "bag"
    vocab_size: int | None = Field(None, ge=300, le=1_000_000)
    """Most entries of a vocabulary that is learned; null takes 60,000 for ``ngrams``, else 8,000, of which 258 stand
    for bytes, padding and the border of columns."""
    min_frequency: int = Field(1, ge=1)
    """A pair of tokens of such a vocabulary is merged only if it occurs this often in the sample."""
    max_tokens: int = Field(128, ge=1, le=4096)
    """The model sees the sample's 99th percentile of token counts, at most this; longer texts are cut off."""
    token_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the tokens that training leaves out, at random."""


class TextModality(Modality[TextSettings]):
    """Strings, or bytes in UTF-8; array and tensor ``ids``."""

    kind = "text"
    settings = TextSettings
    device_settings = frozenset({"token_dropout"})

    def infer(self, name: str, sample: pa.Array) -> float:
        """0.5 for any column of strings, up to 0.9 with the number of words (8 or more)."""
        if not _is_string(sample.type) and not _is_binary(sample.type):
            return 0.0
        texts, errors = _strings(sample)
        if errors or texts.null_count == len(texts):
            return 0.0
        words = pc.mean(pc.count_substring_regex(texts, r"\S+")).as_py()
        return 0.5 + 0.4 * min(1.0, float(words) / 8)

    def check(self, values: Sequence[Any]) -> None:
        """Refuse what is not text: bytes or strings that are not UTF-8, and nested values."""
        for value in values:
            if isinstance(value, (list, tuple, dict)):
                raise DecodeError("column_type", f"expected a string, found a {type(value).__name__}")
            try:
                if isinstance(value, bytes):
                    value.decode("utf-8")
                elif isinstance(value, str):
                    value.encode("utf-8")
            except UnicodeError as error:
                raise DecodeError("text_not_utf8", str(error)) from error

    def fit(self, settings: TextSettings, table: pa.Table) -> Fitted:
        """``num_tokens``, ``vocab_size`` and the tokenizer as a file; equal samples give equal ones.

        With a learned tokenizer also ``token_rows``, the records of the sample that hold each token, and their number
        ``rows``; with n-grams ``first_piece``, from which on ids are of pieces of words; with the tokenizer of a
        pretrained encoder also what the encoder asked for.
        """
        columns, _ = _texts([column.combine_chunks() for column in table.columns])
        prepared, most_tokens = settings.prepare(), settings.max_tokens
        values, files = dict(prepared.values), dict(prepared.files)
        if TOKENIZER_FILE in files:
            most_tokens = min(most_tokens, values["longest"])
        elif settings.chosen()[0] is NGRAMS:
            most_tokens *= _NGRAMS_PER_TOKEN
            records = ([text for text in texts if text] for texts in zip(*columns, strict=True))
            size = settings.vocab_size or _NGRAM_VOCAB
            files[NGRAM_FILE] = learn_ngrams(records, size, settings.min_frequency)
            values["first_piece"] = open_ngrams(files[NGRAM_FILE]).first_piece
        else:
            most_chars = most_tokens * MAX_TOKEN_CHARS
            words = [" ".join(text[:most_chars].split()) for texts in columns for text in texts if text]
            size = settings.vocab_size or _PIECE_VOCAB
            files[TOKENIZER_FILE] = learn(words, size, settings.min_frequency)
        tokenizer = _tokenizer(Fitted(values, files))
        encoded = [np.frombuffer(row, np.int32) for row in tokenizer.encode(columns, most_tokens) if row]
        longest = int(np.ceil(np.percentile([len(ids) for ids in encoded], 99))) if encoded else 1
        values |= {"num_tokens": max(1, longest), "vocab_size": tokenizer.vocab_size}
        if "template" not in values:
            held = np.concatenate([np.zeros(0, np.int32), *map(np.unique, encoded)])
            values["token_rows"] = np.bincount(held, minlength=tokenizer.vocab_size).tolist()
            values["rows"] = len(encoded)
        return Fitted(values, files)

    def decode(
        self,
        settings: TextSettings,
        fitted: Fitted,
        columns: Sequence[pa.Array],
        keys: NDArray[np.uint64] | None,
    ) -> Decoded:
        """``ids`` [n, num_tokens] int32, 0 = padding; a record whose columns are all null or blank is missing."""
        num_tokens: int = fitted.values["num_tokens"]
        texts, errors = _texts(columns)
        rows = _tokenizer(fitted).encode(texts, num_tokens)
        padded = bytearray().join(row.ljust(ID_BYTES * num_tokens, b"\0") for row in rows)
        present = np.fromiter(map(bool, rows), np.bool_, len(rows))
        return Decoded({"ids": np.frombuffer(padded, np.int32).reshape(-1, num_tokens)}, present, errors)

    def augments(self, settings: TextSettings) -> bool:
        """Whether tokens are dropped."""
        return settings.token_dropout > 0

    def measures(
        self, settings: TextSettings, fitted: Fitted, arrays: Arrays
    ) -> dict[str, NDArray[np.float32]]:
        """``tokens``, and ``unknown_share``: the share of them that the vocabulary has no piece of.

        A learned vocabulary has all bytes: text of another language or in another script falls into those.
        """
        ids, tokenizer = arrays["ids"].view(np.int32), _tokenizer(fitted)
        first, last = tokenizer.unknown
        tokens = np.count_nonzero(ids, axis=1)
        if tokenizer.marks:
            tokens -= np.count_nonzero(np.isin(ids, tokenizer.marks), axis=1)
        share = np.count_nonzero((ids >= first) & (ids < last), axis=1) / np.maximum(tokens, 1)
        return {"tokens": tokens.astype(np.float32), "unknown_share": share.astype(np.float32)}

    def words(self, settings: TextSettings, fitted: Fitted, values: Sequence[Any]) -> list[tuple[str, int]]:
        """What stands between white space."""
        texts, _ = _texts([pa.array([value]) for value in values])
        there = [text for (text,) in texts if text and text.strip()]
        return _tokenizer(fitted).words(there, fitted.values["num_tokens"]) if there else []

    def transform(
        self, settings: TextSettings, fitted: Fitted, tensors: Tensors, keys: Any | None
    ) -> Tensors:
        """``ids`` [B, T] int64; with keys, dropped tokens are 0 where they stood, and the encoder gets ``keys`` too.

        Marks that stand in every text are never dropped.
        """
        ids = tensors["ids"].long()
        if keys is None:
            return {"ids": ids}
        kept = uniform_like(keys, _STREAM_DROPOUT, ids.shape[1]) >= settings.token_dropout
        for mark in _tokenizer(fitted).marks:
            kept |= ids == mark
        return {"ids": ids * kept, "keys": keys}

    def encoder(self, settings: TextSettings, fitted: Fitted, width: int) -> nn.Module:
        """As the settings name it; by default a bag of tokens."""
        return build(settings, fitted.values, fitted.files, width)

    def render(self, values: Sequence[Any]) -> str:
        """Escaped text, at most 500 characters a column."""
        parts = [
            v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values if v is not None
        ]
        cut = [p if len(p) <= _RENDER_MAX_CHARS else p[:_RENDER_MAX_CHARS] + "…" for p in parts]
        return "<br>".join(html.escape(p) for p in cut) if cut else "<em>missing</em>"


def _tokenizer(fitted: Fitted) -> TextTokenizer:
    if NGRAM_FILE in fitted.files:
        return open_ngrams(fitted.files[NGRAM_FILE])
    return open_tokenizer(fitted.files[TOKENIZER_FILE], fitted.values.get("template"))


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _strings(column: pa.Array) -> tuple[pa.Array, dict[int, DecodeError]]:
    """The column as large_string, null where a value is not text, with an error for each such row."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_text = _is_string(column.type) or _is_binary(column.type)
    try:
        # Through binary, because only that cast looks whether the bytes are UTF-8.
        return (column.cast(pa.large_binary()) if is_text else column).cast(pa.large_string()), {}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    errors: dict[int, DecodeError] = {}
    if not is_text:
        for row in np.flatnonzero(pc.is_valid(column).to_numpy(zero_copy_only=False)).tolist():
            errors[row] = DecodeError("column_type", f"expected a string, found {column.type}")
        return pa.nulls(len(column), pa.large_string()), errors
    texts: list[str | None] = []
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            texts.append(None if value is None else value.decode("utf-8"))
        except UnicodeDecodeError as error:
            texts.append(None)
            errors[row] = DecodeError("text_not_utf8", f"byte {error.start} of {len(value)}: {error.reason}")
    return pa.array(texts, pa.large_string()), errors


def _texts(columns: Sequence[pa.Array]) -> tuple[list[list[str | None]], dict[int, DecodeError]]:
    """Each column's texts, None where there is none or one of the record's values is wrong; the first error of each."""
    texts: list[list[str | None]] = []
    errors: dict[int, DecodeError] = {}
    for column in columns:
        strings, wrong = _strings(column)
        texts.append(strings.to_pylist())
        errors = {**wrong, **errors}
    for row in errors:
        for column_texts in texts:
            column_texts[row] = None
    return texts, errors


MODALITY = TextModality()
