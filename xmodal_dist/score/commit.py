"""Commit of one unit: its rejected records, then its predictions, the record that counts last and exclusively.

```
quarantine/part-00017-SHA.parquet         rejected records, named by their content
data/part-00017.parquet                   created exclusively, whole: this is the commit of unit 17
```
and of a run that is partitioned by a column
```
data/label=cat/part-00017-SHA.parquet     predictions, named by their content
commits/part-00017.json                   created exclusively: this is the commit of unit 17
```
``-g2`` and so on after the number mark the generations of retries. It knows no model and no Ray.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from xmodal_dist import storage
from xmodal_dist.dataset.quarantine import Rejected
from xmodal_dist.dataset.quarantine import to_parquet as rejected_to_parquet
from xmodal_dist.errors import StorageError, UsageError, VerificationError
from xmodal_dist.pipeline.rows import plain
from xmodal_dist.score.formats import Footer, Part, PartFile, to_json

__all__ = ["COMMITS", "DATA", "QUARANTINE", "commit", "part_path", "read_part", "unit_name"]

COMMITS = "commits"
DATA = "data"
QUARANTINE = "quarantine"

_FOOTER_KEY = b"xmodal"
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_MAX_PARTITIONS = 1000


def unit_name(unit: int, generation: int = 1) -> str:
    """Stem of the names of a unit's files."""
    return f"part-{unit:05d}" + (f"-g{generation}" if generation > 1 else "")


def part_path(unit: int, generation: int = 1, partitioned: bool = False) -> str:
    """Path in the output of the file that commits a unit."""
    name = unit_name(unit, generation)
    return f"{COMMITS}/{name}.json" if partitioned else f"{DATA}/{name}.parquet"


def commit(
    output: str,
    footer: Footer,
    table: pa.Table,
    rejected: Sequence[Rejected],
    partition_by: str | None = None,
) -> tuple[Part, bool]:
    """Commit a unit. If another attempt was first, its part stands.

    Args:
        output: the run's output.
        footer: of this part, without files.
        table: the predictions; the output's schema also where it has no rows.
        rejected: the other records of the unit.
        partition_by: column of ``table`` whose values become folders.

    Returns:
        The part that stands, and whether it is this one.
    """
    assert footer.rows_in == table.num_rows + len(rejected) == footer.rows_ok + footer.rows_bad
    if rejected:
        payload = rejected_to_parquet(rejected)
        footer = footer.model_copy(
            update={"quarantine": _by_content(output, QUARANTINE, footer, payload, len(rejected))}
        )
    if partition_by is not None:
        files = tuple(
            _by_content(output, folder, footer, _to_parquet(rows), rows.num_rows)
            for folder, rows in _partitions(table, partition_by)
        )
        footer = footer.model_copy(update={"files": files})
    text = to_json(footer)
    payload = text.encode() if partition_by is not None else _to_parquet(table, {_FOOTER_KEY: text.encode()})
    path = part_path(footer.unit, footer.generation, partition_by is not None)
    if not storage.create(storage.join(output, path), payload):
        return read_part(output, path), False
    return Part(
        path=path, sha256=hashlib.sha256(payload).hexdigest(), bytes=len(payload), footer=footer
    ), True


def read_part(output: str, path: str) -> Part:
    """Read a commit and what it says.

    Raises:
        VerificationError: it is damaged, or is not of a scoring run.
    """
    place = storage.join(output, path)
    payload = storage.read_bytes(place)
    try:
        if path.endswith(".parquet"):
            text = (pq.read_schema(io.BytesIO(payload)).metadata or {})[_FOOTER_KEY].decode()
        else:
            text = payload.decode()
        footer = Footer.model_validate_json(text)
    except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        raise VerificationError(f"{place} is damaged or not a part of a scoring run: {error}") from error
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise VerificationError(f"{place} is damaged or of another version: {what}") from error
    return Part(path=path, sha256=hashlib.sha256(payload).hexdigest(), bytes=len(payload), footer=footer)


def _by_content(output: str, folder: str, footer: Footer, payload: bytes, rows: int) -> PartFile:
    """Create a file named by its content: attempts that come to the same share it."""
    sha256 = hashlib.sha256(payload).hexdigest()
    path = f"{folder}/{unit_name(footer.unit, footer.generation)}-{sha256[:12]}.parquet"
    place = storage.join(output, path)
    if not storage.create(place, payload) and storage.size_of(place) != len(payload):
        raise StorageError(f"{place} exists with other content: remove it and give the same command again")
    return PartFile(path=path, sha256=sha256, bytes=len(payload), rows=rows)


def _to_parquet(table: pa.Table, metadata: dict[bytes, bytes] | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True
    )
    return sink.getvalue()


def _partitions(table: pa.Table, column: str) -> Iterator[tuple[str, pa.Table]]:
    """Folder and rows of every value of a column, which is left out of the rows: readers take it from the folder."""
    values = plain(table.column(column))
    distinct = pc.unique(values).to_pylist()
    if len(distinct) > _MAX_PARTITIONS:
        raise UsageError(
            f"score.partition_by={column!r}: {len(distinct)} values in one unit, at most {_MAX_PARTITIONS} make sense "
            "as folders; partition by a column with fewer values, or leave it out"
        )
    rest = table.drop_columns([column])
    for value in sorted(distinct, key=lambda v: (v is not None, str(v))):
        same = pc.is_null(values) if value is None else pc.equal(values, pa.scalar(value, values.type))
        name = _NO_VALUE if value is None else quote(str(value), safe="")
        yield f"{DATA}/{quote(column, safe='')}={name}", rest.filter(same)
