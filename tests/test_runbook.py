"""The runbook: its commands, settings and links exist, and its exit codes are those of errors.py."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from xmodal_dist import config, errors
from xmodal_dist.cli.app import app
from xmodal_dist.dataset.quarantine import REASON_CODES

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT = (REPOSITORY / "docs" / "runbook.md").read_text(encoding="utf-8")
_BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
_PROSE = re.sub(r"^```sh\n.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE)
_LINES = [line for block in _BLOCKS for line in block.splitlines()]
_IN_TEXT = re.findall(r"`((?:xmodal|ray) [^`]+)`", _PROSE)
_COMMANDS = sorted({*_LINES, *_IN_TEXT})


def _parse(words: list[str]) -> None:
    """Find the command that the words name, and parse its options; SystemExit or an exception where that fails."""
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name=words[0])
    words = words[1:]
    while hasattr(command, "resolve_command") and words and not words[0].startswith("-"):
        name, command, words = command.resolve_command(context, words)
        context = command.context_class(command, parent=context, info_name=name)
    if not words:  # a command that is only named in the text
        return
    parsed = command.make_context(context.info_name, words, parent=context.parent)
    if context.parent.info_name == "submit" and parsed.args:
        _parse(["xmodal", context.info_name, *parsed.args])


@pytest.mark.parametrize(
    "line",
    ["submit trian", "submit train --data /x --outputt y", "doctor --adress auto", "gcc", "submit stop A B"],
)
def test_what_does_not_exist_does_not_parse(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|unexpected"):
        _parse(["xmodal", *line.split()])


@pytest.mark.parametrize("line", [c for c in _COMMANDS if c.startswith("xmodal ")])
def test_commands_of_ours_parse(line: str) -> None:
    if line.endswith("--data"):  # named in the text, without its value
        line += " DATASET"
    _parse(shlex.split(line, comments=True))


@pytest.mark.parametrize("line", [c for c in _COMMANDS if c.startswith("ray ")])
def test_commands_of_ray_exist(line: str) -> None:
    from ray.scripts.scripts import cli

    assert shlex.split(line)[1] in cli.commands


def test_blocks_hold_commands_that_are_checked() -> None:
    assert {shlex.split(line)[0] for line in _LINES} <= {"xmodal", "python"}
    assert len(_COMMANDS) > 15


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    rows = [line.split("|") for line in TEXT.splitlines() if re.match(r"\| \d+ \|", line)]
    documented = {name: int(cells[1]) for cells in rows for name in re.findall(r"`(\w+)`", cells[3])}
    assert documented == {name: getattr(errors, name).exit_code for name in errors.__all__}
    assert [int(cells[1]) for cells in rows] == sorted({0, *documented.values()})


def test_readme_lists_the_same_exit_codes() -> None:
    sentence = (
        (REPOSITORY / "README.md").read_text(encoding="utf-8").split("Exit codes:", 1)[1].split(".", 1)[0]
    )
    codes = {int(code) for code in re.findall(r"\b\d+\b", sentence)}
    assert codes == {0, *(getattr(errors, name).exit_code for name in errors.__all__)}


def test_reason_codes_that_it_names_exist() -> None:
    named = set(re.findall(r"`((?:uri|media|decoder)_\w+)`", TEXT))
    assert named and named <= REASON_CODES


def test_settings_that_it_names_exist() -> None:
    known = config.Config()
    named = set(re.findall(r"\b(train|pipeline|score|pack)\.([a-z_]+)\b", TEXT))
    assert len(named) > 10
    assert [f"{s}.{n}" for s, n in sorted(named) if n not in type(getattr(known, s)).model_fields] == []


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (REPOSITORY / "docs" / target).exists(), target
