"""What a pretrained network of transformers asks of its input: its ``preprocessor_config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xmodal_dist.encoders import hub

__all__ = ["fetch_preprocessing"]

_FILE = "preprocessor_config.json"


def fetch_preprocessing(place: str) -> dict[str, Any]:
    """The settings that a network's images or sounds were prepared with.

    Args:
        place: what :func:`xmodal_dist.encoders.hub.source_of` returned.

    Raises:
        UsageError: not there.
    """
    cached_file = hub.optional("transformers.utils", "hf").cached_file

    def read(source: str, local_files_only: bool = False, **_: Any) -> dict[str, Any]:
        path = cached_file(source, _FILE, local_files_only=local_files_only)
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return found

    return hub.fetch(read, place, _FILE)
