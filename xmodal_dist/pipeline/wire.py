"""A decoded piece as one Arrow row and back without copying: how pieces cross the object store, once.

The payload has the safetensors layout (8 bytes little-endian header length, JSON header, tensors), so reading it is a
view into shared memory and runs no code. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save

from xmodal_dist.batch import Arrays, Records
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.pipeline.reader import Piece

__all__ = ["from_table", "to_table"]

_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "I16": np.int16, "U16": np.uint16, "I32": np.int32,
    "U32": np.uint32, "I64": np.int64, "U64": np.uint64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}  # fmt: skip


def to_table(piece: Piece) -> pa.Table:
    """One row: ``payload`` (large_binary) with every array, and ``told`` (JSON), the rest of the piece."""
    records = piece.records
    arrays: dict[str, NDArray[Any]] = {
        "present": records.present,
        "labels": records.labels,
        "weights": records.weights,
        "keys": records.keys,
        "ids": records.ids,
    }
    for name, field in records.fields.items():
        arrays |= {f"{name}/{key}": array for key, array in field.items()}
    payload = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
    offsets = pa.py_buffer(np.array([0, len(payload)], dtype=np.int64))
    blob = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(payload)])
    told = {
        "steps": piece.steps,
        "rejected": [r._asdict() for r in piece.rejected],
        "cpu_s": piece.cpu_s,
        "cached_rows": piece.cached_rows,
        "fallbacks": piece.fallbacks,
    }
    return pa.table({"payload": blob, "told": pa.array([json.dumps(told)])})


def from_table(table: pa.Table) -> Piece:
    """Inverse of :func:`to_table`; the arrays are read-only views of the table's memory."""
    column = table.column("payload").chunk(0)
    buffer = memoryview(column[0].as_buffer())
    header_bytes = int.from_bytes(buffer[:8], "little")
    header: dict[str, Any] = json.loads(bytes(buffer[8 : 8 + header_bytes]))
    body = buffer[8 + header_bytes :]
    arrays: dict[str, NDArray[Any]] = {}
    for key, entry in header.items():
        start, stop = entry["data_offsets"]
        arrays[key] = np.frombuffer(body[start:stop], dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    core = {key: arrays.pop(key) for key in ("present", "labels", "weights", "keys", "ids")}
    fields: dict[str, Arrays] = {}
    for key, array in arrays.items():
        name, part = key.rsplit("/", 1)
        fields.setdefault(name, {})[part] = array
    told = json.loads(table.column("told")[0].as_py())
    told["rejected"] = [Rejected(**r) for r in told["rejected"]]
    told["fallbacks"] = Counter(told["fallbacks"])
    return Piece(Records(fields, **core), **told)
