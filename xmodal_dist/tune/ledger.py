"""What a search writes down: search.json, who it is; trials.jsonl, a line for each trial that has ended.

Nothing is pickled. A trial's directory is that of a run, with ``trial.json`` beside: the values that it trains with. So
a search whose driver died is resumed from its files: trials without a line go on from their checkpoints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from xmodal_dist import storage
from xmodal_dist.errors import SpecDiffersError, UsageError
from xmodal_dist.settings import differences

__all__ = [
    "IDENTITY_NAME",
    "RESULT_NAME",
    "TRIALS_NAME",
    "Ledger",
    "Planned",
    "TrialRecord",
    "read_ledger",
    "run_of",
    "running_trials",
    "write_planned",
]

IDENTITY_NAME = "search.json"
TRIALS_NAME = "trials.jsonl"
RESULT_NAME = "result.json"
_PLANNED_NAME = "trial.json"


@dataclass(frozen=True)
class Planned:
    """A trial to run.

    Attributes:
        number: from 0; the first one has the run's own settings.
        values: by dotted name, what differs from the run's settings.
        seed: that it trains with.
        repeat_of: the trial that it repeats with another seed.
    """

    number: int
    values: dict[str, Any]
    seed: int
    repeat_of: int | None = None


@dataclass(frozen=True)
class TrialRecord:
    """A line of the table: a trial that has ended.

    Attributes:
        trial: its number.
        state: ``finished`` all its epochs, ``stopped`` early, or ``failed``.
        reason: why it was stopped or failed: the scheduler, ``budget``, ``diverged``, ``out_of_memory``, ``crashed``,
            ``error``.
        values: the searched settings, by dotted name; with ``pbt`` the last ones.
        metrics: of its best epoch on the validation split, and ``parameters``; {} where it has none.
        best_epoch: that epoch, from 0; -1 where there is none.
        epochs: trained in all.
        seed: that it trained with.
        repeat_of: the trial that it repeats with another seed.
        wall_s: seconds that it trained, over all attempts of this command.
        cpu_s: CPU-seconds measured; None for trials of several workers.
        cpus, gpus: that it held.
        began_s, ended_s: time.time().
        message: of the error.
    """

    trial: int
    state: Literal["finished", "stopped", "failed"]
    reason: str
    values: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    best_epoch: int = -1
    epochs: int = 0
    seed: int = 0
    repeat_of: int | None = None
    wall_s: float = 0.0
    cpu_s: float | None = None
    cpus: float = 0.0
    gpus: float = 0.0
    began_s: float = 0.0
    ended_s: float = 0.0
    message: str = ""


def read_ledger(output: str) -> dict[int, TrialRecord]:
    """The trials that have ended, by number; a last line that was cut short is left out."""
    path = storage.join(output, TRIALS_NAME)
    if not storage.exists(path):
        return {}
    lines = storage.read_text(path).split("\n")[:-1]
    records = (TrialRecord(**json.loads(line)) for line in lines if line)
    return {record.trial: record for record in records}


class Ledger:
    """The files of a search; one process writes.

    Args:
        output: directory of the search, path or URI.
        identity: all that decides which trials there are.
        resume: go on with the search that is there.

    Raises:
        UsageError: there is something in ``output``, and ``resume`` is false.
        SpecDiffersError: the search that is there has another identity.
    """

    def __init__(self, output: str, identity: Mapping[str, Any], resume: bool) -> None:
        self.output = output
        path = storage.join(output, IDENTITY_NAME)
        plain = json.loads(json.dumps(identity))
        if storage.exists(path):
            if not resume:
                raise UsageError(
                    f"{output!r} already holds a search; continue it with --resume, or choose another --output"
                )
            if found := list(differences(json.loads(storage.read_text(path)), plain)):
                raise SpecDiffersError(
                    f"{output!r} was started with another search or data: {'; '.join(found)}"
                )
        elif storage.exists(output) and storage.list_files(output):
            raise UsageError(
                f"{output!r} already holds other files; choose an empty or new directory for --output"
            )
        else:
            storage.write_bytes(path, json.dumps(plain, indent=1, sort_keys=True).encode())
        self.records = read_ledger(output)
        self._write()  # without a line that was cut short

    def run_of(self, number: int) -> str:
        """The run directory of a trial."""
        return run_of(self.output, number)

    def planned(self, number: int) -> Planned:
        """What a trial that has begun trains with; under ``pbt`` that changes."""
        return Planned(**json.loads(storage.read_text(_planned_path(self.output, number))))

    def unfinished(self) -> list[Planned]:
        """Trials that have begun and have no line."""
        return [self.planned(number) for number in running_trials(self.output, self.records)]

    def add(self, record: TrialRecord) -> None:
        """Write a trial's line, once."""
        if record.trial in self.records:
            return
        self.records[record.trial] = record
        if not storage.is_local(self.output):
            self._write()
            return
        with open(storage.join(self.output, TRIALS_NAME), "a", encoding="utf-8") as handle:
            handle.write(_line(record))
            handle.flush()
            os.fsync(handle.fileno())

    def _write(self) -> None:
        text = "".join(_line(record) for record in self.records.values())
        storage.write_bytes(storage.join(self.output, TRIALS_NAME), text.encode())


def run_of(output: str, number: int) -> str:
    """The run directory of a trial."""
    return storage.join(output, "trials", f"{number:05d}")


def running_trials(output: str, records: Mapping[int, TrialRecord]) -> list[int]:
    """Numbers of the trials that have begun and are not among the records."""
    trials = storage.join(output, "trials")
    if not storage.exists(trials):
        return []
    begun = (int(path.split("/")[-2]) for path in storage.list_files(trials, f"/{_PLANNED_NAME}"))
    return sorted(number for number in begun if number not in records)


def write_planned(output: str, planned: Planned) -> None:
    """Say what a trial trains with, in its run directory; done before it begins."""
    payload = json.dumps(asdict(planned), indent=1).encode()
    storage.write_bytes(_planned_path(output, planned.number), payload)


def _planned_path(output: str, number: int) -> str:
    return storage.join(run_of(output, number), _PLANNED_NAME)


def _line(record: TrialRecord) -> str:
    return json.dumps(asdict(record)) + "\n"
