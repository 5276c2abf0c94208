"""The script for several nodes on one machine: what it says and refuses. Ray itself is not started here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def _run(cluster_files: Path, state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XMODAL_LOCAL_DIR": str(state), "XMODAL_LOCAL_SHARED": "1"}
    script = cluster_files / "local" / "cluster.sh"
    return subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("arguments", [(), ("begin",)])
def test_it_says_how_to_use_it(cluster_files: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run = _run(cluster_files, tmp_path, *arguments)
    assert run.returncode == 2 and run.stdout == ""
    for command in ("up [NODES]", "status", "cut NODE", "kill NODE", "start NODE", "run NODE", "down"):
        assert command in run.stderr


def test_nodes_are_known_by_their_processes_and_a_second_cluster_is_refused(
    cluster_files: Path, tmp_path: Path
) -> None:
    assert _run(cluster_files, tmp_path, "status").stdout == ""
    (tmp_path / "0.pid").write_text(f"{os.getpid()}\n")
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as node:
        (tmp_path / "1.pid").write_text(f"{node.pid}\n")
        assert _run(cluster_files, tmp_path, "status").stdout == "0 127.0.0.1 running\n1 127.0.0.1 running\n"
        assert _run(cluster_files, tmp_path, "up").returncode == 2
        (tmp_path / "0.pid").unlink()
        assert _run(cluster_files, tmp_path, "down").returncode == 0
        assert node.wait(10) < 0
    assert _run(cluster_files, tmp_path, "status").stdout == "" and not list(tmp_path.glob("*.pid"))
