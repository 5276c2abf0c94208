"""The event log: a closed set, one line an event whatever is in it, on disks and on stores that cannot append."""

from __future__ import annotations

import json
import threading
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from xmodal_dist import storage
from xmodal_dist.score import events
from xmodal_dist.score.events import EVENTS, EventLog, read_events


@pytest.fixture(params=["disk", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else f"memory://events-{uuid.uuid4().hex}"


def test_events_come_back_by_time_with_who_and_which_run(output: str) -> None:
    assert read_events(output) == []
    with EventLog(output, "a", "0123456789abcdef") as one, EventLog(output, "b", "0123456789abcdef") as two:
        one.emit("run_started", units=3, rows=30, workers=2)
        two.emit("resumed", units=3, units_done=1)
        one.committed(8, 2)
        one.committed(10, 0)
    found = read_events(output)
    assert [(e["driver"], e["event"]) for e in found] == [
        ("a", "run_started"),
        ("b", "resumed"),
        ("a", "units_committed"),
    ]
    assert {e["spec8"] for e in found} == {"01234567"}
    assert [found[2][name] for name in ("units", "rows_ok", "rows_bad")] == [2, 18, 2]
    assert 0 <= found[2]["over_s"] < 10
    times = [datetime.fromisoformat(e["ts"]) for e in found]
    assert all(t.utcoffset() == timedelta(0) for t in times) and times == sorted(times)
    assert abs(datetime.now(timezone.utc) - times[0]) < timedelta(minutes=1)


def test_nothing_outside_the_closed_set_is_written(output: str) -> None:
    log = EventLog(output, "a", "spec")
    with pytest.raises(ValueError, match="no event 'row_scored'"):
        log.emit("row_scored")
    with pytest.raises(ValueError, match=r"'id'.*see EVENTS"):
        log.emit("progress", rows_done=1, id="r001")
    assert not any({"id", "ids", "source", "path"} & fields for fields in EVENTS.values())
    log.close()
    assert read_events(output) == []


def test_no_text_ends_a_line_or_steers_a_terminal(output: str) -> None:
    hostile = 'x\n{"event": "finished"}\r\x1b[2J\u2028\x00' + "y" * 1000
    with EventLog(output, "a", "spec") as log:
        log.emit("stopped", error=hostile)
    (found,) = read_events(output)
    assert found["error"] == hostile[:200]
    raw = storage.read_bytes(storage.join(output, "_events", "a.jsonl"))
    assert raw.count(b"\n") == 1 and raw.endswith(b"\n") and all(32 <= byte < 127 for byte in raw[:-1])


def test_an_error_is_the_last_event_by_its_name_alone(output: str) -> None:
    with pytest.raises(KeyError), EventLog(output, "a", "spec") as log:
        log.committed(1, 0)
        raise KeyError("secret-id")
    found = read_events(output)
    assert {e["event"] for e in found} == {"stopped", "units_committed"}
    assert [e["error"] for e in found if e["event"] == "stopped"] == ["KeyError"]
    assert "secret" not in json.dumps(found)


def test_threads_lose_and_mix_nothing(output: str) -> None:
    with EventLog(output, "a", "spec") as log:

        def work(number: int) -> None:
            for attempt in range(50):
                log.emit("attempt_failed", unit=number, attempts=attempt)
                log.committed(3, 1)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = read_events(output)
    failed = {(e["unit"], e["attempts"]) for e in found if e["event"] == "attempt_failed"}
    assert failed == {(n, a) for n in range(8) for a in range(50)}
    committed = [e for e in found if e["event"] == "units_committed"]
    assert [sum(e[n] for e in committed) for n in ("units", "rows_ok", "rows_bad")] == [400, 1200, 400]


def test_a_disk_shows_events_at_once_and_a_store_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = f"memory://events-{uuid.uuid4().hex}"
    here, there = EventLog(str(tmp_path), "a", "spec"), EventLog(remote, "a", "spec")
    for log in (here, there):
        log.emit("safe_mode", unit=1)
    assert len(read_events(str(tmp_path))) == 1 and read_events(remote) == []
    monkeypatch.setattr(events, "_EVERY_S", 0.0)
    monkeypatch.setattr(events, "_MAX_OBJECT_CHARS", 300)
    for unit in range(10):
        there.emit("safe_mode", unit=unit)
    there.close()
    assert [e["unit"] for e in read_events(remote)] == [1, *range(10)]
    files = storage.list_files(storage.join(remote, "_events"))
    assert len(files) > 2 and all(storage.size_of(path) < 600 for path in files)


def test_a_place_that_takes_no_events_costs_no_run_and_gets_them_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "_events").write_text("in the way")
    log = EventLog(str(tmp_path), "a", "spec")
    log.emit("run_started", units=1)
    assert "events are held back" in caplog.text
    (tmp_path / "_events").unlink()
    log.emit("finished", rows_ok=1)
    assert [e["event"] for e in read_events(str(tmp_path))] == ["run_started", "finished"]


def test_a_half_written_line_is_left_out(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), "a", "spec")
    log.emit("run_started", units=1)
    with open(tmp_path / "_events" / "a.jsonl", "a") as handle:
        handle.write('{"ts": "2026-01-')
    assert [e["event"] for e in read_events(str(tmp_path))] == ["run_started"]
