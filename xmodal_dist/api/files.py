"""What commands write."""

from __future__ import annotations

import json
from typing import Any

from xmodal_dist import storage

__all__ = ["write_json"]


def write_json(path: str, content: dict[str, Any]) -> None:
    """A JSON document for people and programs."""
    storage.write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
