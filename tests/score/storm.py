"""A storm over one scoring output: several drivers share it, and something kills or freezes them and their workers.

Drivers run the real job, except that units reach their workers over pipes instead of Ray: so they start in milliseconds
and can be killed by the dozen. Workers are the real ones, with a real model.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from xmodal_dist.errors import RunAgainError

__all__ = ["Storm", "rage"]

SETTINGS = {"unit_rows": 5, "batch_rows": 3, "max_bad_fraction": 0.5, "max_attempts": 1000}
_WORKERS = 2
_FROZEN_S = 1.0


class Storm(NamedTuple):
    """What happened: processes killed (drivers among them), processes frozen, drivers that came to their end."""

    kills: int
    driver_kills: int
    frozen: int
    finished: int


def rage(
    bundle: str,
    source: str,
    output: str,
    *,
    folder: Path,
    drivers: int = 4,
    min_kills: int = 50,
    seed: int = 0,
    environment: Mapping[str, str] | None = None,
    deadline_s: float = 420.0,
) -> Storm:
    """Score ``source`` into ``output`` with several drivers at once, killing until the number is reached.

    Args:
        bundle: of the run.
        source: its input.
        output: of the run.
        folder: for the drivers' process ids.
        drivers: at work at any time; one that is killed is started again.
        min_kills: the storm ends after so many.
        seed: of whom it hits.
        environment: variables of the drivers.
        deadline_s: fails if the run has not ended by then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["xmodal_dist.score.job", "tests.score.storm"])
    chance = random.Random(seed)
    pids = folder / "pids"
    pids.mkdir()

    def start() -> BaseProcess:
        process = context.Process(
            target=_drive, args=(bundle, source, output, str(pids), dict(environment or {}))
        )
        process.start()
        (pids / f"driver-{process.pid}").touch()
        return process

    alive = [start() for _ in range(drivers)]
    kills = driver_kills = frozen = 0
    began_s = time.monotonic()
    while alive:
        assert time.monotonic() - began_s < deadline_s, f"still at work after {kills} kills"
        time.sleep(chance.uniform(0.02, 0.2))
        for process in [p for p in alive if not p.is_alive()]:
            alive.remove(process)
            if process.exitcode == -signal.SIGKILL:
                alive.append(start())
            else:
                assert process.exitcode == 0, f"a driver ended with {process.exitcode}"
        target = _target(pids, chance, kills < min_kills)
        if target is None:
            continue
        kind, pid = target
        with contextlib.suppress(ProcessLookupError):
            if chance.random() < 0.15:
                os.kill(pid, signal.SIGSTOP)
                frozen += 1
                context.Process(target=_thaw, args=(pid,), daemon=True).start()
            else:
                os.kill(pid, signal.SIGKILL)
                kills += 1
                driver_kills += kind == "driver"
                (pids / f"{kind}-{pid}").unlink(missing_ok=True)
    _end(pids)
    return Storm(kills, driver_kills, frozen, drivers)


def _target(pids: Path, chance: random.Random, raging: bool) -> tuple[str, int] | None:
    """Whom it hits: mostly workers; nobody once it is over."""
    there = sorted(path.name for path in pids.iterdir())
    for name in there:
        if not psutil.pid_exists(int(name.split("-")[1])):
            (pids / name).unlink(missing_ok=True)
    names = [n for n in there if n.startswith("worker")] if chance.random() < 0.8 else there
    if not raging or not names:
        return None
    kind, pid = chance.choice(names).split("-")
    return kind, int(pid)


def _thaw(pid: int) -> None:
    time.sleep(_FROZEN_S)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _end(pids: Path) -> None:
    """Workers without a driver end at their next unit."""
    for path in pids.glob("worker-*"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.name.split("-")[1]), signal.SIGKILL)


def _drive(bundle: str, source: str, output: str, pids: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from xmodal_dist.score import driver, job
    from xmodal_dist.score.pool import Pool
    from xmodal_dist.score.settings import ScoreSettings

    def score_units(
        shared: Any, plan: Any, numbers: Sequence[int], pool: Any, tick_s: float
    ) -> Iterator[Any]:
        return _through_pipes(shared, plan, numbers, Path(pids), environment)

    def find_pool(settings: Any, output: str, num_workers: int, num_units: int) -> Pool:
        return Pool(workers=min(num_workers, num_units))

    vars(driver).update(score_units=score_units, find_pool=find_pool)
    try:
        job.score(bundle, [source], output, ScoreSettings.model_validate(SETTINGS), num_workers=_WORKERS)
    except RunAgainError as error:
        # moto's check of a condition is not quite exclusive: where the probe sees it, one driver waits for another.
        sys.exit(error.exit_code)


def _through_pipes(
    shared: Any, plan: Any, numbers: Sequence[int], pids: Path, environment: dict[str, str]
) -> Iterator[Any]:
    """What ``score_units`` does, with processes of our own: one that dies is replaced, and its unit tried again."""
    from xmodal_dist.score.worker import receipt_of

    context = multiprocessing.get_context("forkserver")
    todo = list(reversed(numbers))
    busy: dict[Connection, int] = {}

    def start() -> None:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, shared, str(pids), environment), daemon=True)
        process.start()
        there.close()
        busy[here] = todo.pop()
        here.send(plan.unit(busy[here])._asdict())

    while todo or busy:
        while todo and len(busy) < _WORKERS:
            start()
        for pipe in wait(list(busy)):
            assert isinstance(pipe, Connection)
            try:
                receipt = pipe.recv()
            except (EOFError, ConnectionResetError):
                todo.append(busy.pop(pipe))
                continue
            if todo:
                busy[pipe] = todo.pop()
                pipe.send(plan.unit(busy[pipe])._asdict())
            else:
                del busy[pipe]
                pipe.close()
            yield receipt_of(receipt)


def _work(pipe: Connection, shared: Any, pids: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    import pyarrow as pa

    from xmodal_dist.score.pool import Pool
    from xmodal_dist.score.worker import ScoreWorker

    Path(pids, f"worker-{os.getpid()}").touch()
    worker = ScoreWorker(shared, Pool(workers=1))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            for table in worker(pa.Table.from_pylist([pipe.recv()])):
                pipe.send(table.to_pylist()[0])
