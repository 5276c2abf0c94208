"""Fetches media that a table names by path or URI, so that decoding always sees bytes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from xmodal_dist import storage
from xmodal_dist.errors import DecodeError, UsageError
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.decode import RowError

__all__ = ["fetch_media", "holds_bytes", "holds_text"]

_SHOWN_CHARS = 300


def holds_text(kind: pa.DataType) -> bool:
    """True for a column of strings: media in it are paths or URIs."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def holds_bytes(kind: pa.DataType) -> bool:
    """True for a column of bytes: media in it are encoded values."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def fetch_media(
    table: pa.Table, specs: Sequence[FieldSpec], base: str, threads: int
) -> tuple[pa.Table, list[RowError]]:
    """Replace every media column of strings by the bytes they name; other columns stay as they are.

    Args:
        table: n records with the columns of ``specs``.
        specs: the fields.
        base: folder or URI where relative paths start.
        threads: requests in flight at once.

    Returns:
        The table, null where a value was null or could not be fetched, and an error for each of the latter.
    """
    errors: list[RowError] = []
    for spec in specs:
        name = spec.columns[0]
        if not spec.modality.is_media or not holds_text(table.schema.field(name).type):
            continue
        values = table.column(name).to_pylist()
        with ThreadPoolExecutor(threads, thread_name_prefix="fetch") as pool:
            fetched = list(pool.map(lambda value: None if value is None else _fetch(base, value), values))
        failed = {row: result for row, result in enumerate(fetched) if isinstance(result, DecodeError)}
        errors.extend(RowError(row, spec.name, error) for row, error in failed.items())
        payloads = pa.array([r if isinstance(r, bytes) else None for r in fetched], pa.large_binary())
        table = table.set_column(table.column_names.index(name), name, payloads)
    return table, errors


def _fetch(base: str, value: str) -> bytes | DecodeError:
    shown = repr(value[:_SHOWN_CHARS])
    try:
        fs, inner = storage.filesystem(value if value.startswith("data:") else storage.join(base, value))
        return bytes(fs.cat_file(inner))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return DecodeError("uri_not_found", f"{shown} does not exist below {base!r}")
    except PermissionError as error:
        return DecodeError("uri_access_denied", f"{shown} must not be read: {error.strerror}")
    except UsageError as error:
        return DecodeError("fetch_failed", str(error))
    except Exception as error:  # every store has errors of its own
        return DecodeError("fetch_failed", f"{shown} cannot be read: {type(error).__name__}: {error}")
