"""What a run or an evaluation was made with and on, in words: settings, seeds, command, versions, machines, time."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from xmodal_dist.report.page import number, seconds

__all__ = ["FINGERPRINT_CHARS", "download", "facts_of_evaluation", "facts_of_run"]

FINGERPRINT_CHARS = 12
"""Of a SHA-256, where people read it."""

_COMMIT_CHARS = 12


def facts_of_run(
    identity: Mapping[str, Any],
    commands: Sequence[Mapping[str, Any]],
    goodput: Mapping[str, Any],
    workers: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """Name -> value, for a table.

    Args:
        identity: content of ``run.json``.
        commands: those of ``environment.json``, the newest last; empty for runs of earlier releases.
        goodput: content of ``goodput.json``; {} while the run goes on.
        workers: who trained, as ``metrics.jsonl`` says.
    """
    facts = {"dataset": f"fingerprint {identity.get('dataset', '')[:FINGERPRINT_CHARS]}"}
    if commands:
        facts["dataset"] = f"{commands[-1]['dataset']}, {facts['dataset']}"
    facts["seeds"] = f"train.seed {identity.get('train', {}).get('seed', number(None))}"
    if commands:
        facts["seeds"] += f"; of the dataset's splits and order {commands[-1]['dataset_seed']}"
    if goodput:
        part = "of the last command" if len(commands) > 1 else "from start to end"
        facts["time"] = f"{seconds(goodput['wall_s'])} {part}"
        if goodput.get("cpu_s_per_record") is not None:
            cpu_s = goodput["cpu_s_per_record"] * goodput["records"]
            facts["time"] += f"; {seconds(cpu_s)} of CPU time in workers and readers"
    if workers:
        hosts = dict.fromkeys(worker["host"] for worker in workers)
        facts["workers"] = f"{len(workers)} on {', '.join(hosts)}"
    for place, command in enumerate(commands[:-1], 1):
        facts[f"command {place} of {len(commands)}"] = f"{_moment(command['started'])}: {command['command']}"
    return facts | (_machine(commands[-1]) if commands else {})


def facts_of_evaluation(details: Mapping[str, Any]) -> dict[str, str]:
    """Name -> value, for a table; of the content of an evaluation's ``report.json``."""
    return {
        "bundle": f"{details['bundle']}, fingerprint {details['fingerprint'][:FINGERPRINT_CHARS]}",
        "dataset": f"{details['dataset']}, fingerprint {details['dataset_fingerprint'][:FINGERPRINT_CHARS]}",
        "split": details["split"],
        "time": seconds(details["wall_s"]),
        **_machine(details["environment"]),
    }


def download(text: str) -> str:
    """An address inside the page from which a browser saves the text as a file."""
    return "data:text/yaml;base64," + base64.b64encode(text.encode()).decode("ascii")


def _machine(found: Mapping[str, Any]) -> dict[str, str]:
    """The content of :func:`xmodal_dist.environment.capture` in words."""
    cluster = found["cluster"]
    facts = {
        "started": _moment(found["started"]),
        "command": found["command"],
        "code": _commit(found["git"]),
        "machine": f"{found['host']}: {found['cpu']}, {_counted(found['cores'], 'core')}, "
        f"{found['memory_bytes'] / (1 << 30):.1f} GiB of memory",
        "accelerators": ", ".join(found["accelerators"]) or "none",
    }
    if cluster:
        facts["cluster"] = ", ".join(_counted(cluster[name], name[:-1]) for name in cluster)
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return facts | {"system": found["system"], "versions": f"Python {found['python']}, {packages}"}


def _counted(amount: float, name: str) -> str:
    shown = name.upper() if len(name) == 3 else name
    return f"{amount:g} {shown}{'' if amount == 1 else 's'}"


def _moment(started: str) -> str:
    return started.replace("T", " ").replace("+00:00", " UTC")


def _commit(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return "the working directory was in no git repository"
    state = {True: ", with changes that are not committed", False: "", None: ", changes unknown"}
    return f"git commit {git['commit'][:_COMMIT_CHARS]}{state[git['changed']]}"
