"""The image and the compose file: pinned, of this version, without root; every file that they name is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from xmodal_dist.version import __version__

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]


@pytest.fixture(scope="module")
def instructions(cluster_files: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = (cluster_files / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [
        (line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")
    ]


def test_the_image_is_built_in_two_stages_and_runs_without_root(instructions: list[tuple[str, str]]) -> None:
    stages = [i for i, (name, _) in enumerate(instructions) if name == "FROM"]
    assert len(stages) == 2
    final = instructions[stages[1] :]
    assert [value for name, value in final if name == "USER"] == ["10001:10001"]
    assert not [value for name, value in final if "pip install" in value], "the last stage installs nothing"
    base = next(value for name, value in instructions if name == "ARG")
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+", base), "a version to the last number"
    labels = dict(part.split("=", 1) for n, v in final if n == "LABEL" for part in shlex.split(v))
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels.keys() >= {
        f"org.opencontainers.image.{name}" for name in ("title", "description", "licenses")
    }


def test_what_the_image_copies_is_there_and_not_ignored(
    cluster_files: Path, instructions: list[tuple[str, str]]
) -> None:
    allowed = [
        line[1:]
        for line in (cluster_files.parent / ".dockerignore").read_text().splitlines()
        if line[:1] == "!"
    ]
    copied = [
        source.removeprefix("./")
        for name, value in instructions
        if name == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    ]
    assert sorted(copied) == sorted(allowed)
    assert all((cluster_files.parent / path).exists() for path in copied)


def test_constraints_pin_one_version_each_within_our_ranges(cluster_files: Path) -> None:
    lines = (cluster_files / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((cluster_files.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *extras["s3"], *extras["video"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text


@pytest.fixture(scope="module")
def compose(cluster_files: Path) -> dict[str, Any]:
    return yaml.safe_load((cluster_files / "compose.yaml").read_text())  # type: ignore[no-any-return]


def test_compose_starts_a_head_and_workers_of_the_image(cluster_files: Path, compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"head", "worker"}
    build = services["head"]["build"]
    context = (cluster_files / build["context"]).resolve()
    assert (context / build["dockerfile"]).is_file() and (context / "pyproject.toml").is_file()
    for service in services.values():
        assert service["image"] == f"xmodal-dist:{__version__}"
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?"), (
            "no default, no value"
        )
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        volumes = {volume.split(":")[0] for volume in service["volumes"]}
        assert volumes <= compose["volumes"].keys() and set(service["networks"]) <= compose["networks"].keys()
    assert services["worker"]["depends_on"] == {"head": {"condition": "service_healthy"}}


def test_compose_opens_the_dashboard_to_this_machine_alone(compose: dict[str, Any]) -> None:
    ports = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert ports == {"head": ["127.0.0.1:8265:8265"], "worker": []}
    assert "/api/gcs_healthz" in compose["services"]["head"]["healthcheck"]["test"][-1]


def test_ray_knows_the_options_that_services_start_with(compose: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    for service in compose["services"].values():
        program, command, *arguments = shlex.split(service["command"])
        assert (program, command) == ("ray", "start")
        assert start.make_context("start", arguments).params["block"] is True
