"""What is written down about where a command ran."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from xmodal_dist import environment
from xmodal_dist.version import __version__


def test_capture_is_json_and_says_what_matters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/usr/bin/xmodal", "train", "--data", "s3://key:word@store/a b"])
    found = json.loads(json.dumps(environment.capture()))
    assert found["command"] == "xmodal train --data 's3://***@store/a b'"
    assert found["packages"]["xmodal-dist"] == __version__ and {"ray", "torch"} <= set(found["packages"])
    assert found["cores"] >= 1 and found["memory_bytes"] > 1 << 28 and found["cpu"]
    assert datetime.fromisoformat(found["started"]).tzinfo is not None
    assert found["git"] is None


def test_the_commit_and_whether_files_differ_from_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    commit = git("rev-parse", "HEAD")
    assert environment.capture()["git"] == {"commit": commit, "changed": False}
    (tmp_path / "a").write_text("2")
    assert environment.capture()["git"] == {"commit": commit, "changed": True}
