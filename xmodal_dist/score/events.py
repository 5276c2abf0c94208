"""What happened in a scoring run and when: one file of JSON lines a driver, under ``_events``.

For people and reports; nothing is decided by it. So a store that takes no events costs events, never a run. Only events
of the closed set below are written, each with figures of its own: no ids, paths or values of records get in.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

from xmodal_dist import storage

__all__ = ["EVENTS", "FOLDER", "EventLog", "read_events"]

FOLDER = "_events"
EVENTS: Mapping[str, frozenset[str]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "run_started": "units rows workers",
        "resumed": "units rows units_done rows_done workers",
        "units_committed": "units rows_ok rows_bad over_s",
        "progress": "rows_done rows rows_bad units_done units rows_per_s left_s workers",
        "attempt_failed": "unit attempts",
        "safe_mode": "unit attempts",
        "budget_exceeded": "rows_bad rows reasons",
        "finished": "rows_in rows_ok rows_bad wall_s",
        "stopped": "error",
    }.items()
}
"""Event -> the fields it may have: numbers, None, reason code -> rows, or the name of an error's class."""

_EVERY_S = 10.0
_MAX_TEXT_CHARS = 200
_MAX_OBJECT_CHARS = 1 << 20

_log = logging.getLogger(__name__)


class EventLog:
    """The events of one driver; use it as a context manager. Thread-safe.

    On this machine's disks lines are appended as they come. Object stores cannot append: there the file is written anew
    every 10 seconds and at the end, and goes on as another one beyond 1 MiB.

    Args:
        output: path or URI of the run's output.
        driver: name of the driver, unique among all that ever work on the output.
        spec: digest of the run's identity; events carry its first 8 characters.
    """

    def __init__(self, output: str, driver: str, spec: str) -> None:
        self._driver, self._spec8 = driver, spec[:8]
        self._folder = storage.join(output, FOLDER)
        self._appends = storage.is_local(output)
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._file = 0
        self._unwritten = False
        self._written_s = self._counted_s = time.monotonic()
        self._units = self._rows_ok = self._rows_bad = 0

    def emit(self, event: str, **fields: Any) -> None:
        """Note an event now.

        Raises:
            ValueError: it is not of the closed set, or may not have such a field.
        """
        if event not in EVENTS or not EVENTS[event].issuperset(fields):
            raise ValueError(f"no event {event!r} with the fields {sorted(fields)}; see EVENTS")
        with self._lock:
            self._add(event, fields)
            self._write(whole=False)

    def committed(self, rows_ok: int, rows_bad: int) -> None:
        """Count a unit that was committed; every 10 seconds the count becomes an event."""
        with self._lock:
            self._units += 1
            self._rows_ok += rows_ok
            self._rows_bad += rows_bad
            if time.monotonic() - self._counted_s >= _EVERY_S:
                self._add_units()
                self._write(whole=False)

    def close(self) -> None:
        """Write all that is not written."""
        with self._lock:
            self._add_units()
            self._write(whole=True)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.emit("stopped", error=type(error).__name__)
        self.close()

    def _add_units(self) -> None:
        now = time.monotonic()
        if self._units:
            counts = {"units": self._units, "rows_ok": self._rows_ok, "rows_bad": self._rows_bad}
            self._add("units_committed", {**counts, "over_s": round(now - self._counted_s, 3)})
        self._units = self._rows_ok = self._rows_bad = 0
        self._counted_s = now

    def _add(self, event: str, fields: Mapping[str, Any]) -> None:
        ts = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        values = {name: v[:_MAX_TEXT_CHARS] if isinstance(v, str) else v for name, v in fields.items()}
        line = {"ts": ts, "event": event, "spec8": self._spec8, "driver": self._driver, **values}
        # Everything but plain ASCII is escaped: no text can end the line or steer a terminal.
        self._lines.append(json.dumps(line, ensure_ascii=True) + "\n")
        self._unwritten = True

    def _write(self, *, whole: bool) -> None:
        if not self._unwritten:
            return
        if not self._appends and not whole and time.monotonic() - self._written_s < _EVERY_S:
            return
        self._written_s = time.monotonic()
        name = f"{self._driver}-{self._file}.jsonl" if self._file else f"{self._driver}.jsonl"
        path, text = storage.join(self._folder, name), "".join(self._lines)
        try:
            if self._appends and storage.exists(path):
                with open(path, "a", encoding="ascii") as handle:
                    handle.write(text)
            else:
                storage.write_bytes(path, text.encode("ascii"))
        except Exception as error:  # whatever a store's client raises
            _log.warning("events are held back, since they cannot be written: %s", error)
            return
        self._unwritten = False
        if self._appends:
            self._lines.clear()
        elif len(text) > _MAX_OBJECT_CHARS:
            self._lines.clear()
            self._file += 1


def read_events(output: str) -> list[dict[str, Any]]:
    """The events of all drivers of a run, by time; lines that are half written are left out."""
    folder = storage.join(output, FOLDER)
    events = []
    for path in storage.list_files(folder, ".jsonl"):
        for line in storage.read_text(path).splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
    return sorted(events, key=lambda event: str(event["ts"]))
