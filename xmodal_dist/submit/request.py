"""What a job is before any cluster hears of it: its command, its identity, its environment, and who may ask. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from xmodal_dist.errors import AuthenticationError, UsageError

__all__ = [
    "DEFAULT_ADDRESS",
    "Attempt",
    "JobRequest",
    "check_address",
    "find_token",
    "next_attempt",
    "plan_request",
]

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where Ray's dashboard is on the head node, and where port-forwarding brings it."""

_REFERENCE = "env:"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE_OF_CLUSTER = re.compile(r"[A-Z_][A-Z0-9_]*")
_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|KEY|APIKEY)(_|$)", re.IGNORECASE)
_PASSWORD_IN_URI = re.compile(r"\w://[^/\s:@]*:[^/\s@]+@")
_UNFINISHED = {"PENDING", "RUNNING"}


class JobRequest(NamedTuple):
    """A job to submit.

    Attributes:
        name: the same for the same command, from any machine; attempts are numbered after it.
        entrypoint: shell command that the head node runs.
        env_vars: environment of the job and of its workers; ``${NAME}`` is replaced on each node.
    """

    name: str
    entrypoint: str
    env_vars: dict[str, str]


class Attempt(NamedTuple):
    """A submission id, and whether a job with it is under way already."""

    submission_id: str
    is_under_way: bool


def plan_request(command: str, arguments: Sequence[str], env: Sequence[str] = ()) -> JobRequest:
    """The job that runs a command of ours.

    Args:
        command: for example ``train``.
        arguments: its arguments.
        env: ``NAME=VALUE``; ``NAME=env:OTHER`` takes the value that OTHER has on each node of the cluster.

    Raises:
        UsageError: an entry of ``env`` is malformed, or a secret would be stored in the job.
    """
    for argument in arguments:
        if _PASSWORD_IN_URI.search(argument):
            raise UsageError(
                "an argument holds a URI with a password, which the cluster would keep and show: give the credentials "
                "to the nodes (role, mounted file) or by --env NAME=env:NAME"
            )
    env_vars = dict(_variable(entry) for entry in env)
    content = json.dumps([command, list(arguments), sorted(env_vars.items())])
    name = f"xmodal-{command}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    return JobRequest(name, shlex.join(["python", "-m", "xmodal_dist.cli", command, *arguments]), env_vars)


def _variable(entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not equals or not _VARIABLE.fullmatch(name):
        raise UsageError(
            f"--env {name!r}: expected NAME=VALUE, or NAME=env:OTHER for a variable of the cluster"
        )
    if value.startswith(_REFERENCE):
        other = value.removeprefix(_REFERENCE)
        if not _VARIABLE_OF_CLUSTER.fullmatch(other):
            raise UsageError(f"--env {name}={value}: expected a name in capitals after {_REFERENCE!r}")
        return name, "${" + other + "}"
    if _SECRET.search(name):
        raise UsageError(
            f"--env {name}: its value would be stored in the job, where everyone with the token reads it; "
            f"set it on the nodes of the cluster, and refer to it by --env {name}=env:{name.upper()}"
        )
    return name, value


def next_attempt(name: str, statuses: Mapping[str, str]) -> Attempt:
    """The attempt that is under way, else the next one. Ray runs a submission id once.

    Args:
        name: of the request.
        statuses: status of every job of the cluster by submission id.
    """
    parts = [submission_id.rpartition("-") for submission_id in statuses]
    numbers = sorted(int(number) for base, _, number in parts if base == name and number.isdigit())
    for submission_id in (f"{name}-{number}" for number in reversed(numbers)):
        if statuses[submission_id] in _UNFINISHED:
            return Attempt(submission_id, True)
    return Attempt(f"{name}-{numbers[-1] + 1 if numbers else 1}", False)


def find_token(environ: Mapping[str, str], home: Path) -> str | None:
    """The token, looked for where Ray does: ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``, ``~/.ray/auth_token``.

    Raises:
        AuthenticationError: the file that is named cannot be read, or is empty.
    """
    if token := environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else home / ".ray" / "auth_token"
    try:
        token = path.read_text().strip()
    except OSError as error:
        if named:
            raise AuthenticationError(f"RAY_AUTH_TOKEN_PATH={named}: {error.strerror}") from error
        return None
    if named and not token:
        raise AuthenticationError(f"RAY_AUTH_TOKEN_PATH={named}: the file is empty")
    return token or None


def check_address(address: str, token: str | None, *, insecure: bool = False) -> str | None:
    """Whether jobs may be sent there; returns a warning, or None.

    Args:
        address: of the dashboard, as ``http://HOST:PORT``.
        token: what will be sent along.
        insecure: allow a cluster elsewhere without a token.

    Raises:
        UsageError: it is no such address.
        AuthenticationError: a cluster elsewhere, and no token.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--address {address}: expected the dashboard's, for example {DEFAULT_ADDRESS}")
    if _is_loopback(parts.hostname):
        return None
    if token is None:
        if not insecure:
            raise AuthenticationError(
                f"no token for {address}: a cluster elsewhere that needs none runs the code of whoever reaches it. Set "
                f"RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to its token; --insecure goes on without"
            )
        return f"{address}: without a token, everyone who reaches this cluster runs code on it"
    if parts.scheme == "http":
        return f"{address}: the token travels unencrypted; forward the port instead, or use https"
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
