"""The floor under every reader: pyarrow's iter_batches and the fewest operations that make the same numpy arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.protocol import finish, measured, request

_MAX_DEVIATIONS = 10.0
_FIRST_CATEGORY = 2


def batches(asked: dict[str, Any]) -> Iterator[tuple[np.ndarray[Any, Any], ...]]:
    """Per batch: numeric float32 [B, 3], missing bool [B, 3], categorical int32 [B, 1], labels int64 [B]."""
    numeric = [c for c in asked["columns"] if "mean" in c]
    (category,) = [c for c in asked["columns"] if "categories" in c]
    means, stds = np.array([c["mean"] for c in numeric]), np.array([c["std"] for c in numeric])
    categories, classes = pa.array(category["categories"]), pa.array(asked["classes"])
    names = [*(c["name"] for c in numeric), category["name"], asked["label"]]
    for path in asked["shards"]:
        for batch in pq.ParquetFile(path).iter_batches(asked["batch_size"], columns=names):
            values = np.stack([batch.column(c["name"]).to_numpy() for c in numeric], axis=1)
            values = ((values - means) / stds).clip(-_MAX_DEVIATIONS, _MAX_DEVIATIONS).astype(np.float32)
            codes = pc.index_in(batch.column(category["name"]), categories).to_numpy() + _FIRST_CATEGORY
            labels = pc.index_in(batch.column(asked["label"]), classes).to_numpy()
            yield values, np.isnan(values), codes.astype(np.int32)[:, None], labels.astype(np.int64)


def main() -> None:
    """Warm up and take the digest in one pass, then measure some passes."""
    asked = request()
    digests = [hashlib.sha256() for _ in range(4)]
    for arrays in batches(asked):
        for digest, array in zip(digests, arrays, strict=True):
            digest.update(np.ascontiguousarray(array).tobytes())
    rows = 0
    with measured("loop"):
        for _ in range(asked["passes"]):
            rows += sum(len(labels) for *_, labels in batches(asked))
    finish({"rows": rows, "digest": [d.hexdigest()[:16] for d in digests]})


if __name__ == "__main__":
    main()
