"""Exit codes of jobs; and a job on a Ray of its own with a dashboard and a token, by the command line."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest

from xmodal_dist.cli import main
from xmodal_dist.errors import RunAgainError, UsageError
from xmodal_dist.submit import client as client_module
from xmodal_dist.submit.client import Cluster, Job, exit_code
from xmodal_dist.submit.package import write_package
from xmodal_dist.submit.request import plan_request

TOKEN = "f" * 64
SECRET = "known-to-the-nodes-alone"


def _ended(status: str, code: int | None = None, error: str | None = None) -> Job:
    return Job("x-1", status, "python", "", error, code, 1, 2)


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (_ended("SUCCEEDED", 0), 0),
        (_ended("FAILED", 1, "JOB_ENTRYPOINT_COMMAND_ERROR"), 1),
        (_ended("FAILED", 78, "JOB_ENTRYPOINT_COMMAND_ERROR"), 78),
        (_ended("FAILED", -9, "JOB_ENTRYPOINT_COMMAND_ERROR"), 137),
        (_ended("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED"), 75),
        (_ended("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE"), 1),
        (_ended("STOPPED"), 75),
    ],
)
def test_a_job_ends_with_the_code_of_its_command(job: Job, code: int) -> None:
    assert job.is_over and exit_code(job) == code


class _Client:
    """A Jobs API that tells these statuses, one after the other, and whose log is what each ``tail`` makes of it."""

    def __init__(self, statuses: Sequence[str], *tails: Callable[[], AsyncIterator[str]]) -> None:
        self.statuses, self.tails = list(statuses), list(tails)

    def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        return self.tails.pop(0)()

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        if not self.statuses:
            raise RuntimeError(f"Request failed with status code 404: Job {submission_id} does not exist")
        status = SimpleNamespace(value=self.statuses.pop(0))
        ray_names = ("error_type", "start_time", "end_time")
        return SimpleNamespace(**{**_ended("")._asdict(), **dict.fromkeys(ray_names), "status": status})


async def _broken() -> AsyncIterator[str]:
    yield "one\ntwo"
    raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


async def _silent() -> AsyncIterator[str]:
    yield "one\ntwo"
    await asyncio.sleep(60)


async def _whole() -> AsyncIterator[str]:
    yield "one\ntwo"
    yield "\nthree\n"


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[_Client], tuple[Job, str]]]:
    """Follow the job of such a client at an address that takes connections."""
    monkeypatch.setattr(client_module, "_SILENCE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        cluster = Cluster.__new__(Cluster)
        cluster.address = f"http://127.0.0.1:{server.getsockname()[1]}"

        def follow(client: _Client) -> tuple[Job, str]:
            cluster._client = client  # type: ignore[assignment]
            printed: list[str] = []
            return cluster.follow("x-1", printed.append), "".join(printed)

        yield follow


@pytest.mark.parametrize("interrupted", [_broken, _silent])
def test_a_log_goes_on_where_its_connection_broke_or_fell_silent(
    followed: Callable[[_Client], tuple[Job, str]], interrupted: Callable[[], AsyncIterator[str]]
) -> None:
    job, printed = followed(_Client(["RUNNING", "RUNNING", "SUCCEEDED"], interrupted, _whole))
    assert job.status == "SUCCEEDED" and printed == "one\ntwo\nthree\n"


def test_a_head_that_was_started_anew_or_is_gone_without_a_word_asks_for_the_same_command_again(
    followed: Callable[[_Client], tuple[Job, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        followed(_Client([]))
    with pytest.raises(RunAgainError, match="started anew. Give the same command again"):
        followed(_Client(["RUNNING"], _broken))
    (port,) = _free_ports(1)
    cluster = Cluster.__new__(Cluster)
    cluster.address, cluster._client = f"http://127.0.0.1:{port}", _Client(["RUNNING"], _silent)  # type: ignore[assignment]
    with pytest.raises(RunAgainError, match="does not answer"):
        cluster.follow("x-1", str)


def _xmodal(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["submit", *arguments])
    out, err = capfd.readouterr()
    assert caught.value.code == code, out + err
    return out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--data", "data/animals", "--output", "/x"), "data 'data/animals' is relative"),
        (("train", "--data", "/data/animals"), "output 'runs/train' is relative"),
        (("pack", "a.csv", "data/a"), "dataset 'data/a' is relative"),
        (("train", "--output", "/x"), "--data"),
        (("train", "--data", "/a", "--output", "/x", "--epochs", "3"), "--epochs"),
        (("train", "--data", "/a", "--output", "/x", "--address", "host:1"), "expected the dashboard's"),
        (("list", "--address", "http://127.0.0.1:1"), "does not answer"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert words in _xmodal(capfd, *arguments, code=2)[1]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head node that asks for a token. Its variable TEAM_KEY stands for a secret of the cluster."""
    place = tmp_path_factory.mktemp("ray")
    port, agent_port = _free_ports(2)
    options = ["--head", "--block", "--node-ip-address=127.0.0.1", "--port=0", "--num-cpus=2"]
    # The agent's port is fixed otherwise, and taken where another Ray runs.
    options += [f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent_port}"]
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "TEAM_KEY": SECRET,
        "HOME": str(place),
    }
    # The package, wherever the job's own directory is.
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (place / "log").open("w") as log:
        head = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                *options,
                "--object-store-memory=100000000",
            ],
            env={**os.environ, **environment, **quiet, "PATH": path},
            stdout=log,
            stderr=log,
        )
    try:
        _await(port, place / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _await(port: int, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail(log.read_text())


@pytest.fixture
def at(dashboard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Options that name the cluster, and the token where the command line looks for it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    return ("--address", dashboard)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_job_is_followed_to_its_end_and_watched_with_the_token_alone(
    at: tuple[str, str], capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"r{i},{'xy'[i % 2]},{i / 7:.2f}\n" for i in range(40))
    (tmp_path / "records.csv").write_text("id,label,a\n" + rows)
    command = ("pack", "records.csv", str(tmp_path / "dataset"), "--working-dir", str(tmp_path), *at)

    out, err = _xmodal(capfd, *command)
    assert "40 records read = train" in out and "SUCCEEDED" in err
    assert json.loads((tmp_path / "dataset" / "manifest.json").read_text())["source_rows"] == 40
    (job,) = json.loads(_xmodal(capfd, "list", *at, "--json")[0])
    assert job["status"] == "SUCCEEDED" and job["submission_id"].startswith("xmodal-pack-")
    assert "40 records read" in _xmodal(capfd, "logs", job["submission_id"], *at)[0]
    assert "SUCCEEDED" in _xmodal(capfd, "status", job["submission_id"], *at)[0]
    assert "over already" in _xmodal(capfd, "stop", job["submission_id"], *at)[0]
    _xmodal(capfd, "status", "nobody", *at, code=2)

    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert "Invalid authentication token" in _xmodal(capfd, *command, code=77)[1]
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    # Ray remembers a process's token: missing in a new one, the wrong one of before in this one, may be what it says.
    assert "authentication token" in _xmodal(capfd, "list", *at, code=77)[1]


@pytest.mark.cluster
def test_secrets_are_resolved_on_the_node_and_stored_nowhere_and_exit_codes_come_back(
    at: tuple[str, str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    request = plan_request("gc", ["/out"], ["HF_TOKEN=env:TEAM_KEY"])
    (tmp_path / "hello.txt").write_text("hello from the tree")
    write_package(tmp_path, [PurePosixPath("hello.txt")], tmp_path / "tree.zip")
    command = 'echo "<${#HF_TOKEN} characters>" && cat hello.txt && exit 66'
    Cluster(at[1], TOKEN).submit(request._replace(entrypoint=command), "mine-2", tmp_path / "tree.zip")
    out, _ = _xmodal(capfd, "logs", "--follow", "mine-2", *at, code=66)
    assert f"<{len(SECRET)} characters>" in out and "hello from the tree" in out
    asked = urllib.request.Request(f"{at[1]}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(asked, timeout=30) as reply:
        stored = reply.read().decode()
    assert "mine-2" in stored and SECRET not in stored
