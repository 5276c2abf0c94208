"""For tests where torchvision's wheel stands beside a torch of another build, as one for CPUs alone.

Its compiled half cannot be loaded there, and importing it fails for want of two operators' schemas. An environment
whose site-packages hold this module and a ``.pth`` file with ``import torchvision_operators`` defines them when
torchvision is imported, in every process, Ray's workers among them. The operators themselves are not to be had.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_SCHEMAS = ("nms", "qnms")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing; acts when torchvision is looked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _define()
        return None


def _define() -> None:
    import torch

    folder = importlib.util.find_spec("torchvision")
    places = [] if folder is None else folder.submodule_search_locations or []
    try:
        for place in places:
            torch.ops.load_library(f"{place}/_C.so")
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in _SCHEMAS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)  # schemas live as long as their library


_kept: list[object] = []
sys.meta_path.insert(0, _Finder())
