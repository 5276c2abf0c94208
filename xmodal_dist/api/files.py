"""What commands write."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_dist import storage

__all__ = ["write_json", "write_parquet"]


def write_json(path: str, content: dict[str, Any]) -> None:
    """A JSON document for people and programs."""
    storage.write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def write_parquet(path: str, table: pa.Table) -> None:
    """A table, whole."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(path, sink.getvalue())
