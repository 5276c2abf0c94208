"""The scoring job, killed once on the way and, if it was the driver, started again.

Request keys: ``bundle``; ``inputs``; ``folder``, where outputs are written; ``settings``, the configuration's section
``score``; ``victim``, ``driver``, ``worker`` or None; ``share`` of the units after which it dies by SIGKILL. Result:
``units``; ``begun_again``, attempts that died with the victim; ``lost``, ``duplicated`` and ``failed_checks``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ours.reading import NUM_CPUS
from benchmarks.protocol import finish, measured, request

_POLL_S = 0.01
_COMMAND = """
import json, sys
from xmodal_dist import runtime
from xmodal_dist.score.job import score
from xmodal_dist.score.settings import ScoreSettings
asked = json.loads(sys.argv[1])
settings = ScoreSettings.model_validate(asked["settings"])
score(
    asked["bundle"], asked["inputs"], asked["output"], settings, asked["num_cpus"],
    session=lambda: runtime.connect(num_cpus=asked["num_cpus"]),
)
"""


def main(asked: dict[str, Any]) -> None:
    """One run to its end, whatever happens on the way."""
    from xmodal_dist.score import ledger
    from xmodal_dist.score.verify import verify_scoring

    output = tempfile.mkdtemp(dir=asked["folder"]) + "/out"
    begun_again = 0
    with measured("job"):
        process = _start(asked, output)
        if asked["victim"] is not None:
            _wait_for_units(Path(output), asked["share"], process)
            begun_again = _kill(process, asked["victim"], Path(output))
            if asked["victim"] == "driver":
                process = _start(asked, output)
        if process.wait() != 0:
            raise RuntimeError("the job failed")
    identity = ledger.load_identity(output)
    units = len(ledger.load_plan(output, identity))
    found = verify_scoring(output)
    finish(
        {
            "units": units,
            "begun_again": begun_again,
            **found._asdict(),
            "failed_checks": len(found.failed_checks),
        }
    )


def _start(asked: dict[str, Any], output: str) -> subprocess.Popen[bytes]:
    told = {name: asked[name] for name in ("bundle", "inputs", "settings")}
    told |= {"output": output, "num_cpus": NUM_CPUS}
    return subprocess.Popen([sys.executable, "-c", _COMMAND, json.dumps(told)], stdout=sys.stderr)


def _wait_for_units(output: Path, share: float, process: subprocess.Popen[bytes]) -> None:
    """Until so many of the units are committed."""
    from xmodal_dist.score import ledger

    while not (output / ledger.RUN_NAME).exists():
        _require_alive(process)
    units = len(ledger.load_plan(str(output), ledger.load_identity(str(output))))
    while len(ledger.committed_units(str(output))) < share * units:
        _require_alive(process)


def _require_alive(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise RuntimeError("the job ended before it was killed")
    time.sleep(_POLL_S)


def _kill(process: subprocess.Popen[bytes], victim: str, output: Path) -> int:
    """SIGKILL; the attempts at units that died of it."""
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [p for p in family if _is_worker(p)]
    if victim == "worker":
        if not workers:
            raise RuntimeError("no worker was found")
        os.kill(workers[0].pid, signal.SIGKILL)
        return 1
    process.kill()
    process.wait()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(family, timeout=10)
    return sum(1 for path in (output / "_attempts").rglob("*") if path.is_file())


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        title = " ".join(process.cmdline())
        return title.startswith("ray::") and "ScoreWorker" in title
    return False


if __name__ == "__main__":
    main(request())
