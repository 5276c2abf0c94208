"""Which words a prediction comes from: integrated gradients on the embeddings of a text's tokens.

Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) from embeddings of zeros, a text that says nothing, to
those of the text. What is attributed is the probability of the predicted class, so that the words' attributions add up
to what the text changed it by (completeness); how far a sum misses that is told.

The path is straight, as in the paper, but passed with most steps near its start: a layer norm behind an encoder makes
features of any size alike, so that nearly all of the change lies in the first hundredths of the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call

from xmodal_dist.batch import Tensors
from xmodal_dist.bundle import Bundle
from xmodal_dist.explain.sample import held, noting

__all__ = ["TokenAttribution", "attribute_tokens", "merge_words"]

_NODES = (32, 96, 288)
_MAX_GAP = 0.002
_POWER = 4


@dataclass(frozen=True)
class TokenAttribution:
    """What each token of one text did to a probability.

    Attributes:
        tokens: [T] float64, of the tokens in order, padding left out; the occurrences of one token share alike.
        total: what the tokens together changed: probability with the text less that with embeddings of zeros.
    """

    tokens: NDArray[np.float64]
    total: float

    @property
    def gap(self) -> float:
        """By how much the sum over the tokens misses the total; 0 if the steps were enough."""
        return float(self.tokens.sum() - self.total)


def attribute_tokens(
    bundle: Bundle, inputs: dict[str, Tensors], present: torch.Tensor, label: int, field: str
) -> TokenAttribution | None:
    """Attribute one record's probability of a class to the tokens of one of its fields.

    Args:
        bundle: the model, in evaluation mode.
        inputs: transformed tensors of the record, [1, ...].
        present: [1, M], the field is there.
        label: the class.
        field: a field whose encoder reads token ids (0 = padding) through an ``nn.Embedding``.

    Returns:
        None if there is no such embedding, or no gradient reaches it.
    """
    model = bundle.model
    ids = _ids(inputs[field])
    embedding = None if ids is None else _embedding(model.encoders[field], int(ids.max()))
    if ids is None or embedding is None:
        return None
    outputs: dict[str, Any] = {}
    with torch.no_grad(), noting(model, outputs):
        model(inputs, present)
    del outputs[field]
    name = next(path for path, module in model.named_modules() if module is embedding) + ".weight"
    weight = embedding.weight.detach()
    used, place, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    rows, temperature = weight[used], bundle.temperatures(present)

    def probability(leaf: torch.Tensor) -> torch.Tensor:
        replaced = {name: weight.index_copy(0, used, leaf)}
        with held(model, outputs):
            fused = functional_call(model, replaced, (inputs, present)).fused
        chosen: torch.Tensor = (fused.float() / temperature).softmax(dim=-1)[0, label]
        return chosen

    with torch.no_grad():
        total = float(probability(rows) - probability(torch.zeros_like(rows)))
    for nodes in _NODES:
        shares = torch.zeros(len(used), dtype=torch.float64, device=rows.device)
        for at, length in zip(*_path(nodes), strict=True):
            leaf = (at * rows).requires_grad_()
            with torch.enable_grad():
                reached = probability(leaf)
            if not reached.requires_grad:
                return None
            (gradient,) = torch.autograd.grad(reached, leaf)
            shares += length * (gradient.double() * rows.double()).sum(dim=1)
        tokens = (shares / counts)[place].cpu().numpy()
        found = TokenAttribution(tokens, total)
        if abs(found.gap) <= _MAX_GAP:
            break
    return found


def merge_words(
    words: Sequence[tuple[str, int]], tokens: NDArray[np.float64]
) -> list[tuple[str, float | None]] | None:
    """Attributions of words as sums over their tokens; None for a word that the model did not see.

    Args:
        words: as :meth:`xmodal_dist.modalities.base.Modality.words` gives them.
        tokens: [T] attributions of tokens.

    Returns:
        None if the words are not those of the tokens.
    """
    if sum(count for _, count in words) != len(tokens):
        return None
    ends = np.cumsum([count for _, count in words])
    return [
        (word, float(tokens[end - count : end].sum()) if count else None)
        for (word, count), end in zip(words, ends, strict=True)
    ]


def _ids(tensors: Tensors) -> torch.Tensor | None:
    """[T] the token ids, without padding; of several whole-number tensors the one with the largest values."""
    whole = [x for x in tensors.values() if x.dtype in (torch.int64, torch.int32) and x.dim() == 2]
    if not whole:
        return None
    ids = max(whole, key=lambda x: int(x.max()))[0]
    ids = ids[ids != 0]
    return ids if len(ids) else None


def _embedding(encoder: nn.Module, largest_id: int) -> nn.Embedding | None:
    """The one that reads the ids: the one with most rows, as positions and segments are fewer than tokens."""
    found = [m for m in encoder.modules() if isinstance(m, nn.Embedding) and m.num_embeddings > largest_id]
    return max(found, key=lambda m: m.num_embeddings, default=None)


def _path(nodes: int) -> tuple[list[float], list[float]]:
    """Places in (0, 1) and weights for a mean over it: Gauss-Legendre in t, at t^4."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    t = (x + 1) / 2
    return (t**_POWER).tolist(), (w / 2 * _POWER * t ** (_POWER - 1)).tolist()
