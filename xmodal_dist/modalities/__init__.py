"""The registry of modalities is this folder: each file but the supporting ones named below is one modality.

A third party's modality is named by its dotted path, for example ``kind: mypackage.lidar``.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

from xmodal_dist.errors import UsageError
from xmodal_dist.modalities.base import Decoded, FieldSettings, Fitted, Modality

__all__ = ["Decoded", "FieldSettings", "Fitted", "Modality", "available", "load"]

_SUPPORT = frozenset(
    {"augment", "base", "clips", "containers", "fields", "gifs", "ngrams", "pixels", "samples", "tokenizer"}
)


def available() -> list[str]:
    """Kinds that ship with the package, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SUPPORT)


@functools.cache
def load(kind: str) -> Modality[Any]:
    """The modality of a kind, or of a dotted module path that defines ``MODALITY``.

    Raises:
        UsageError: no such kind or module.
    """
    if "." not in kind and kind not in available():
        raise UsageError(
            f"unknown field kind {kind!r}; known kinds: {', '.join(available())}, or a dotted module path"
        )
    path = kind if "." in kind else f"{__name__}.{kind}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise UsageError(f"field kind {kind!r}: module {path} cannot be imported ({error})") from error
    modality = module.MODALITY
    assert isinstance(modality, Modality), f"{path}.MODALITY is not a Modality"
    return modality
