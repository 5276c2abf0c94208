"""The Slurm script, run with stand-ins for Slurm's own programs: what it starts, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

STANDS_IN = {
    "scontrol": """#!/bin/bash
if [ "$1" = show ]; then printf 'node1\\nnode2\\n'; else echo "scontrol $*" >>"$CALLS"; fi
""",
    "hostname": "#!/bin/bash\necho '10.0.0.1 fd00::1'\n",
    "srun": """#!/bin/bash
if [[ "$*" == *"ray stop --force" ]]; then echo "sweep" >>"$CALLS"; exit; fi
trap 'echo "srun was ended" >>"$CALLS"; kill -- -$step; exit 143' TERM
while [ "$1" != -- ]; do options+=("$1"); shift; done
echo "srun ${options[*]}" >>"$CALLS"
shift
setsid "$@" & step=$!
wait $step || exit 143  # the code of a node that was ended because the head's command failed
""",
    "xmodal": """#!/bin/bash
echo "xmodal $*" >>"$CALLS"
echo "$RAY_ADDRESS $RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH $RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT" >>"$CALLS"
for _ in $(seq "${STEP_TENTHS_S:-0}"); do sleep 0.1; done
exit "${STEP_EXIT_CODE:-0}"
""",
}
ARGUMENTS = ("--data", "/shared/a data", "--output", "/shared/run")


@pytest.fixture
def script(cluster_files: Path) -> Path:
    return cluster_files / "slurm" / "train.sbatch"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in STANDS_IN.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "4",
    }


def _start(script: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(script), *ARGUMENTS],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _calls(environment: dict[str, str]) -> list[str]:
    path = Path(environment["CALLS"])
    return path.read_text().splitlines() if path.exists() else []


def test_nodes_share_a_token_and_the_head_runs_a_command_of_ours(
    script: Path, environment: dict[str, str], parses: Callable[[str], dict[str, object]]
) -> None:
    for _ in range(2):
        job = _start(script, environment)
        output, _ = job.communicate(timeout=60)
        assert job.returncode == 0, output
    calls = _calls(environment)
    assert calls[:4] == calls[4:], "the same command again does the same"
    swept, step, command, seen = calls[:4]
    assert swept == "sweep", "what a killed job left behind is ended first"
    assert step.endswith(" ray symmetric-run --address 10.0.0.1:6379 --min-nodes 2 --num-cpus 4")
    assert command == "xmodal train --resume --data /shared/a data --output /shared/run"
    parsed = parses("xmodal train --resume --data '/shared/a data' --output /shared/run")
    assert parsed["resume"] and parsed["data"] == ARGUMENTS[1]
    token = Path(environment["HOME"], ".ray", "auth_token")
    assert seen == f"10.0.0.1:6379 token {token} 300"
    assert len(token.read_text()) == 64 and token.stat().st_mode & 0o077 == 0


def test_ray_has_symmetric_run_with_these_options(script: Path) -> None:
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    assert "ray symmetric-run" in script.read_text()
    assert {option for parameter in symmetric_run.params for option in parameter.opts} >= {
        "--address",
        "--min-nodes",
    }
    given = ["--address", "10.0.0.1:6379", "--min-nodes", "2", "--num-cpus", "4"]
    assert curate_and_validate_ray_start_args(given) == ["--num-cpus", "4"]


@pytest.mark.parametrize(
    ("step", "restarts", "code", "requeued"),
    [("1", "0", 1, False), ("66", "0", 66, False), ("75", "0", 0, True), ("75", "20", 75, False)],
)
def test_exit_codes_are_passed_on_and_75_goes_back_to_the_queue(
    script: Path, environment: dict[str, str], step: str, restarts: str, code: int, requeued: bool
) -> None:
    job = _start(script, {**environment, "STEP_EXIT_CODE": step, "SLURM_RESTART_COUNT": restarts})
    output, _ = job.communicate(timeout=60)
    assert job.returncode == code, output
    assert ("scontrol requeue 77" in _calls(environment)) is requeued


def test_before_the_time_limit_the_step_is_ended_and_the_job_goes_back_to_the_queue(
    script: Path, environment: dict[str, str]
) -> None:
    job = _start(script, {**environment, "STEP_TENTHS_S": "50"})
    deadline = time.monotonic() + 60
    while len(_calls(environment)) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0 and "time limit is near" in output
    assert _calls(environment)[4:] == ["srun was ended", "sweep", "scontrol requeue 77"]


def test_slurm_is_asked_for_what_the_script_relies_on(script: Path) -> None:
    asked = {
        line.removeprefix("#SBATCH ")
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH")
    }
    assert asked >= {
        "--ntasks-per-node=1",
        "--exclusive",
        "--signal=B:USR1@300",
        "--requeue",
        "--open-mode=append",
    }
