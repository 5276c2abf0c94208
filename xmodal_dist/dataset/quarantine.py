"""Rejected records are data: where each came from, a reason code of a closed set, and a message. Never silent."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from xmodal_dist.errors import BudgetExceededError, DecodeError

__all__ = ["REASON_CODES", "SCHEMA", "Rejected", "check_budget", "to_parquet"]

REASON_CODES = frozenset(
    """
    shard_missing shard_empty_file shard_truncated shard_corrupt shard_schema shard_changed
    id_missing id_duplicate label_missing label_unknown column_missing column_type value_nonfinite row_unreadable
    media_empty media_unrecognised media_truncated media_too_large_bytes media_too_large_decoded
    media_unsupported_format media_decode_error decoder_timeout decoder_crashed decoder_oom
    audio_zero_length audio_nonfinite audio_rate_unsupported video_no_stream video_no_frames video_too_long
    text_not_utf8 text_empty text_too_long
    uri_forbidden uri_not_found uri_access_denied fetch_failed
    model_error model_nonfinite
    """.split()
)
"""Reason codes, version 1."""

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("field", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)


class Rejected(NamedTuple):
    """One rejected record.

    Attributes:
        source: file it came from.
        row: position in that file, from 0 (the line's or record's index, header not counted).
        id: the record's id, or "" where it has none.
        field: field or column at fault, or "" where it is the record as a whole.
        reason: one of :data:`REASON_CODES`.
        message: in words, at most 500 characters, without payload.
    """

    source: str
    row: int
    id: str
    field: str
    reason: str
    message: str

    @staticmethod
    def of(error: DecodeError, source: str, row: int, record_id: str, field: str) -> Rejected:
        """From a decode error."""
        assert error.reason in REASON_CODES, error.reason
        return Rejected(source, row, record_id, field, error.reason, error.detail[:500])


def to_parquet(rejected: Sequence[Rejected]) -> bytes:
    """The records as one Parquet file of :data:`SCHEMA`."""
    columns = [pa.array([record[i] for record in rejected], column.type) for i, column in enumerate(SCHEMA)]
    table = pa.table(columns, schema=SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def check_budget(
    rejected: Sequence[Rejected] | Counter[str],
    rows: int,
    max_fraction: float,
    setting: str,
    quarantine: str = "",
) -> None:
    """Fail where more than ``max_fraction`` of ``rows`` were rejected.

    Args:
        rejected: the records, or how many for each reason.
        rows: records seen, rejected ones included.
        max_fraction: 0 to 1.
        setting: name of the setting to raise, for the message.
        quarantine: where the rejected records are, for the message; "" leaves it out.

    Raises:
        BudgetExceededError: with the counts by reason and one example.
    """
    reasons = rejected if isinstance(rejected, Counter) else Counter(r.reason for r in rejected)
    count = reasons.total()
    if count <= max_fraction * rows:
        return
    example = ""
    if not isinstance(rejected, Counter):
        first = rejected[0]
        place = f"{first.source} row {first.row}, {first.field or 'record'}"
        example = f" First: {place}: {first.reason} ({first.message})."
    raise BudgetExceededError(
        f"{count} of {rows} records ({count / max(rows, 1):.2%}) were rejected, "
        f"more than {setting}={max_fraction:g} allows: "
        f"{', '.join(f'{reason} {n}' for reason, n in reasons.most_common())}.{example} "
        f"Mend the source, or raise {setting} to go on without them."
        + (f" Each is named in {quarantine}." if quarantine else "")
    )
