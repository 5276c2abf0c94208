from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from xmodal_dist.errors import UsageError
from xmodal_dist.submit import package
from xmodal_dist.submit.package import files_to_send, write_package

SENT = ["configs/run.yaml", "jobs/train.py", "run.sh"]
LEFT_OUT = [
    "runs/first/bundle/weights.safetensors", ".venv/bin/python", "jobs/__pycache__/train.pyc", ".env", "deploy.pem",
    "animals/manifest.json", "animals/data/train-0.parquet", "scored/_run.json", "scored/data/part-0.parquet",
    "mine/run.json", "mine/metrics.jsonl", "mine/checkpoints/1/state",
]  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in (*SENT, *LEFT_OUT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "run.sh").chmod(0o755)
    return root


def _git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)


def test_code_travels_data_and_keys_stay(tree: Path) -> None:
    assert [str(path) for path in files_to_send(tree)] == SENT


def test_in_a_repository_what_git_ignores_stays_and_what_is_new_travels(tree: Path) -> None:
    _git(tree, "init", "-q")
    (tree / ".gitignore").write_text("*.tmp\n")
    (tree / "x.tmp").write_text("")
    (tree / "jobs" / "new.py").write_text("")
    _git(tree, "add", "configs", "jobs/train.py", ".gitignore")
    (tree / "configs" / "run.yaml").unlink()
    assert [str(path) for path in files_to_send(tree)] == [
        ".gitignore",
        "jobs/new.py",
        "jobs/train.py",
        "run.sh",
    ]
    assert [str(path) for path in files_to_send(tree / "jobs")] == ["new.py", "train.py"], (
        "a folder of a repository"
    )


@pytest.mark.parametrize("pattern", ["configs", "configs/", "configs/*", "*.yaml", "configs/run.yaml"])
def test_patterns_are_of_names_or_of_paths(tree: Path, pattern: str) -> None:
    assert "configs/run.yaml" not in [str(path) for path in files_to_send(tree, [pattern])]
    assert len(files_to_send(tree, [pattern])) == len(SENT) - 1


def test_a_package_depends_on_the_files_alone(tree: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.zip", tmp_path / "2.zip"
    assert write_package(tree, files_to_send(tree), first) == len(SENT)
    for name in SENT:
        (tree / name).touch()
    write_package(tree, files_to_send(tree), second)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as content:
        assert content.namelist() == SENT and content.read("run.sh") == b"run.sh"
        assert content.getinfo("run.sh").external_attr >> 16 == 0o755


def test_a_tree_that_is_too_large_names_its_largest_parts(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "videos").mkdir()
    (tree / "videos" / "a.mp4").write_bytes(bytes(3 << 20))
    monkeypatch.setattr(package, "MAX_BYTES", 2 << 20)
    with pytest.raises(
        UsageError, match=r"3 MiB to send, more than 2 MiB; most of it in videos/ \(3 MiB\).*--exclude"
    ):
        write_package(tree, files_to_send(tree), tmp_path / "x.zip")
    write_package(tree, files_to_send(tree, ["*.mp4"]), tmp_path / "x.zip")
