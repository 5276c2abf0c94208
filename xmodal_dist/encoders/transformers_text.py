"""Text encoders of Hugging Face ``transformers`` (the BERT family), by a local folder or a hub id.

Legend of tensor shapes: B rows, T tokens, H features of the network, D width.
"""

from __future__ import annotations

import itertools
import json
from typing import Any, Literal

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import nn

from xmodal_dist.batch import Tensors
from xmodal_dist.encoders.base import Architecture, Prepared, Pretrained, Request
from xmodal_dist.encoders.dropout import RecordDropout
from xmodal_dist.encoders.hub import (
    fetch,
    fetch_config,
    layer_parameters,
    load_transformer,
    make_transformer,
    optional,
    settle,
    source_of,
)
from xmodal_dist.encoders.tokens import bucket_length
from xmodal_dist.errors import UsageError
from xmodal_dist.settings import Settings

__all__ = ["PRETRAINED_TEXT_ENCODERS", "TOKENIZER_FILE", "PretrainedText", "PretrainedTextOptions", "prepare"]

TOKENIZER_FILE = "tokenizer.json"
"""Name of a text field's tokenizer among its files."""

_CONFIG_FILE = "config.json"
_STREAM_FEATURES = 303
# Groups of rows of like length cost one call of the network each; finer ones would save less padding than that.
_LENGTH_STEP = 16


class PretrainedTextOptions(Settings):
    """Options of the networks of ``transformers`` for text."""

    pooling: Literal["mean", "cls"] = "mean"
    """What stands for a text: the mean of its tokens' states, or the state of its first token."""
    feature_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the network's features that training leaves out."""


class PretrainedText(Pretrained):
    """Ids of the network's own tokenizer to features: pooled states of the last layer, projected.

    Rows run in groups of like length, so that padding costs little.

    Args:
        config: JSON of the network's configuration.
        source: folder or hub id of the weights.
        revision: the hub's commit that the configuration is of; None of a folder.
        zero: the id that stands for the tokenizer's 0.
        width: features per row.
        options: pooling and dropout.
    """

    def __init__(
        self,
        config: str,
        source: str,
        revision: str | None,
        zero: int,
        width: int,
        options: PretrainedTextOptions,
    ) -> None:
        backbone: Any = make_transformer(config, use_cache=False)
        backbone.pooler = None
        embed = backbone.get_input_embeddings()
        probe = torch.zeros(1, 2, dtype=torch.int64)
        settle(backbone, lambda: backbone(inputs_embeds=embed(probe)).last_hidden_state)
        super().__init__(backbone, layer_parameters(backbone), embed.embedding_dim)
        self.source, self.revision, self.zero, self.pooling = source, revision, zero, options.pooling
        self.dropout = RecordDropout(options.feature_dropout, _STREAM_FEATURES)
        self.project = nn.Linear(self.num_features, width)

    def load_weights(self) -> None:
        """See :class:`Pretrained`."""
        load_transformer(self.backbone, self.source, self.revision)

    def head(self, seen: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """Features [B, D] of pooled states [B, H]."""
        features: torch.Tensor = self.project(self.dropout(seen, keys))
        return features

    def see(self, tensors: Tensors) -> torch.Tensor:
        """Pooled states [B, H] of ``ids`` [B, T] int64, 0 = no token (anywhere, and attended to by none).

        Zeros for a row without a token. One wait for the device, for lengths.
        """
        ids = tensors["ids"]
        ends = (ids != 0) * torch.arange(1, ids.shape[1] + 1, device=ids.device)
        lengths, order = ends.amax(dim=1).clamp(min=1).sort(descending=True, stable=True)
        padded = [min(_padded_length(n), ids.shape[1]) for n in lengths.tolist()]
        groups = [(length, sum(1 for _ in same)) for length, same in itertools.groupby(padded)]
        ids = ids[order]
        # Looked up once: each look-up has a gradient of the whole table's size.
        embedded = self._embed(ids[:, : max(padded, default=0)])
        parts, row = [], 0
        for length, rows in groups:
            here = slice(row, row + rows)
            parts.append(self._group(embedded[here, :length], ids[here, :length] != 0))
            row += rows
        by_length = torch.cat(parts) if parts else embedded.new_zeros(0, self.num_features)
        return torch.empty_like(by_length).index_copy(0, order, by_length)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        backbone: Any = self.backbone
        own = ids if self.zero == 0 else ids.masked_fill(ids == self.zero, 0)
        embedded: torch.Tensor = backbone.get_input_embeddings()(own)
        return embedded

    def _group(self, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[n, L, H] of which ``mask`` [n, L] says what is a token -> [n, H]."""
        # A row without a token attends to its first place, or its softmax would be over nothing.
        seen = torch.cat([mask[:, :1] | ~mask.any(dim=1, keepdim=True), mask[:, 1:]], dim=1)
        states = self.backbone(inputs_embeds=embedded, attention_mask=seen.long()).last_hidden_state
        if self.pooling == "cls":
            first: torch.Tensor = states[:, 0] * mask[:, :1]
            return first
        inside = mask.unsqueeze(-1)
        mean: torch.Tensor = (states * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)
        return mean


def _padded_length(num_tokens: int) -> int:
    return -(-bucket_length(num_tokens) // _LENGTH_STEP) * _LENGTH_STEP


def prepare(reference: str, pretrained: bool) -> Prepared:
    """The network's configuration and tokenizer as files, and how it wants its texts framed.

    Returns:
        Values ``source`` and ``revision`` (where its weights are), ``longest`` (tokens of a text, marks included) and
        ``template``: ids ``before``, ``between`` the texts of two columns, and ``after``, that of the ``unknown`` token
        or None, and ``zero``, which stands for the tokenizer's 0 where 0 means no token.

    Raises:
        UsageError: not there, or no network or tokenizer that this package can use.
    """
    del pretrained  # the vocabulary is the network's, whatever it begins with
    source = source_of(reference)
    config, revision = fetch_config(source)
    values = json.loads(config)
    if values.get("is_encoder_decoder"):
        kind = values["model_type"]
        raise UsageError(
            f"encoder 'hf:{reference}' is a {kind} with a decoder; text takes encoders alone, as BERT"
        )
    options = {} if revision is None else {"revision": revision}
    load = optional("transformers", "hf").AutoTokenizer.from_pretrained
    loaded = fetch(load, source, "usable tokenizer.json", **options)
    if not loaded.is_fast:
        raise UsageError(
            f"encoder 'hf:{reference}' has no tokenizer.json, or one that only Python code can run"
        )
    tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    longest = min(loaded.model_max_length, values.get("max_position_embeddings") or loaded.model_max_length)
    return Prepared(
        {
            "source": source,
            "revision": revision,
            "longest": int(longest),
            "template": {
                **_template(tokenizer),
                "unknown": loaded.unk_token_id,
                "zero": tokenizer.get_vocab_size() if loaded.pad_token_id is None else loaded.pad_token_id,
            },
        },
        {_CONFIG_FILE: config, TOKENIZER_FILE: tokenizer.to_str()},
    )


def _template(tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The ids that the tokenizer puts around a text and between two."""
    text = tokenizer.encode("a", add_special_tokens=False).ids
    one, two = tokenizer.encode("a").ids, tokenizer.encode("a", "a").ids
    at = next(i for i in range(len(one)) if one[i : i + len(text)] == text)
    before, after = one[:at], one[at + len(text) :]
    between = two[at + len(text) : len(two) - len(after) - len(text)]
    return {"before": before, "between": between or after, "after": after}


def _build(request: Request) -> nn.Module:
    assert isinstance(request.options, PretrainedTextOptions)
    values = request.values
    return PretrainedText(
        request.files[_CONFIG_FILE],
        values["source"],
        values["revision"],
        values["template"]["zero"],
        request.width,
        request.options,
    )


PRETRAINED_TEXT_ENCODERS = (
    Architecture(
        "hf",
        "a network of transformers (BERT family) with its tokenizer, by folder or hub id",
        PretrainedTextOptions,
        _build,
        prepare,
    ),
)
