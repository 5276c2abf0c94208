"""xmodal-dist: distributed training of cross-modal classifiers, and scoring of very large datasets with them.

The public functions have the names and arguments of the commands: ``from xmodal_dist import pack, train, score``.
Importing the package alone loads none of them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from xmodal_dist.version import __version__

if TYPE_CHECKING:
    from xmodal_dist.api import (
        calibrate,
        compare,
        doctor,
        evaluate,
        explain,
        find_lr,
        inspect,
        pack,
        plan,
        score,
        train,
        tune,
        verify,
    )

__all__ = [
    "__version__", "calibrate", "compare", "doctor", "evaluate", "explain", "find_lr", "inspect", "pack", "plan",
    "score", "train", "tune", "verify",
]  # fmt: skip


class _Function:
    """A public function as an attribute of the package, loaded at first use.

    Some functions share their name with a room (``train``, ``score``, ``evaluate``, ``doctor``). Importing a room sets
    the package's attribute to the module; the setter ignores that, so that the name means the function whatever was
    imported before. ``from xmodal_dist.train.loop import ...`` is not affected.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, package: ModuleType | None, owner: type | None = None) -> Any:
        from xmodal_dist import api

        return getattr(api, self._name)

    def __set__(self, package: ModuleType, module: object) -> None:
        pass


_FUNCTIONS = {name: _Function(name) for name in __all__ if not name.startswith("_")}
sys.modules[__name__].__class__ = type("_Package", (ModuleType,), _FUNCTIONS)
