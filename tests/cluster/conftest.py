"""The folder with the cluster files, and the check of a command line against the command."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from tests.cluster.kustomize import CLUSTER
from xmodal_dist.cli import app


@pytest.fixture(scope="session")
def cluster_files() -> Path:
    return CLUSTER


@pytest.fixture(scope="session")
def parses() -> Callable[[str], dict[str, object]]:
    """Parse ``xmodal ...`` as the command line does, without running it; returns the parameters."""

    def parse(line: str) -> dict[str, object]:
        program, name, *arguments = shlex.split(line)
        assert program == "xmodal"
        commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
        return dict(commands[name].make_context(name, arguments).params)

    return parse
