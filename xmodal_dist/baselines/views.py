"""Features fitted to the train split: scaled and projected as each family of models needs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xmodal_dist.baselines.features import TEXTS, Blocks

__all__ = ["Preparation", "Views", "prepare"]

_MAX_DENSE = 128
_MAX_TERMS = 30_000
_WORD = r"(?u)\w+|[^\w\s]"
"""Words, and signs one by one, so that no text is without any."""


class Views(NamedTuple):
    """The same n records for different families of models.

    Attributes:
        linear: [n, D], dense or sparse; D may be large.
        dense: [n, d], d <= 128.
        counts: [n, D] without negative values; None where features can be negative.
    """

    linear: Any
    dense: NDArray[np.float64]
    counts: Any | None


class Preparation(ABC):
    """What was fitted to the features of one field."""

    @abstractmethod
    def views(self, blocks: Blocks) -> Views:
        """Views of records that have the field."""


def prepare(blocks: Blocks) -> Preparation:
    """Fit to the features of the train split's records that have the field, at least one."""
    return _Texts(blocks[TEXTS]) if TEXTS in blocks else _Numbers(blocks)


class _Numbers(Preparation):
    """Blocks of equal total variance, side by side; principal components where they are more than 128."""

    def __init__(self, blocks: Blocks) -> None:
        from sklearn.decomposition import PCA

        self._scales = {name: _Scale(block) for name, block in blocks.items()}
        self._is_counts = all(block.min() >= 0 for block in blocks.values())
        joined = self._joined(blocks)
        self._pca = None
        if joined.shape[1] > _MAX_DENSE and len(joined) > 1:
            width = min(_MAX_DENSE, len(joined) - 1)
            self._pca = PCA(width, svd_solver="randomized", random_state=0).fit(joined)
            joined = self._pca.transform(joined)
        self._size = max(float(np.sqrt(joined.var(axis=0).mean())), 1e-12)

    def views(self, blocks: Blocks) -> Views:
        joined = self._joined(blocks)
        dense = (joined if self._pca is None else self._pca.transform(joined)) / self._size
        counts = np.concatenate(list(blocks.values()), axis=1).clip(0) if self._is_counts else None
        return Views(dense, dense, counts)

    def _joined(self, blocks: Blocks) -> NDArray[np.float64]:
        return np.concatenate([self._scales[name](block) for name, block in blocks.items()], axis=1)


class _Scale:
    """Moves a block to mean 0 and its total variance to 1."""

    def __init__(self, block: NDArray[Any]) -> None:
        self._mean = block.mean(axis=0, dtype=np.float64)
        total = float(np.sqrt(block.var(axis=0, dtype=np.float64).sum()))
        self._size = total if total > 1e-9 else 1.0

    def __call__(self, block: NDArray[Any]) -> NDArray[np.float64]:
        moved: NDArray[np.float64] = (block - self._mean) / self._size
        return moved


class _Texts(Preparation):
    """TF-IDF of words (one and two) and of characters (two to five, within words); its singular vectors; counts."""

    def __init__(self, texts: NDArray[Any]) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

        many = {"max_features": _MAX_TERMS}
        words = {"token_pattern": _WORD, "ngram_range": (1, 2), **many}
        self._weighted = [
            TfidfVectorizer(sublinear_tf=True, **words).fit(texts),
            TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5), **many).fit(texts),
        ]
        self._counter = CountVectorizer(**words).fit(texts)
        linear = self._linear(texts)
        width = min(_MAX_DENSE, *linear.shape)
        self._svd = TruncatedSVD(width, random_state=0).fit(linear) if width < linear.shape[1] else None
        self._size = max(float(np.sqrt(self._projected(linear).var(axis=0).mean())), 1e-12)

    def views(self, blocks: Blocks) -> Views:
        linear = self._linear(blocks[TEXTS])
        return Views(linear, self._projected(linear) / self._size, self._counter.transform(blocks[TEXTS]))

    def _linear(self, texts: NDArray[Any]) -> Any:
        from scipy.sparse import hstack

        return hstack([vectorizer.transform(texts) for vectorizer in self._weighted], format="csr")

    def _projected(self, linear: Any) -> NDArray[np.float64]:
        # Of length 1, as is usual in latent semantic analysis: texts of any number of words are equally far apart.
        projected = linear.toarray() if self._svd is None else self._svd.transform(linear)
        length = np.linalg.norm(projected, axis=1, keepdims=True)
        return np.asarray(projected / np.maximum(length, 1e-9), dtype=np.float64)
