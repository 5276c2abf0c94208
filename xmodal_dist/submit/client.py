"""A cluster's Jobs API: submit, follow, stop. Faults come out as errors of ours, with their exit codes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from xmodal_dist.errors import AuthenticationError, RunAgainError, UsageError, XmodalError
from xmodal_dist.submit.request import JobRequest

if TYPE_CHECKING:  # slow to import
    from ray.job_submission import JobSubmissionClient

__all__ = ["Cluster", "Job", "exit_code"]

_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
_METADATA_KEY = "xmodal"
_SIGNAL_BASE = 128
_START_TIMEOUT_S = 60
_SILENCE_S = 60.0
"""Of a log, after which it is asked whether the cluster is still there: a host that vanishes closes no connection."""
_KNOCK_S = 15.0
_NOT_FOUND = 404
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")


class Job(NamedTuple):
    """A job of a cluster.

    Attributes:
        submission_id: its id; None for a driver that connected without the Jobs API.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        entrypoint: shell command.
        message: what the cluster says about the status.
        error: Ray's code of what went wrong, or None.
        driver_exit_code: of the command, once it ended by itself.
        started_ms: milliseconds since 1970, or None.
        ended_ms: likewise.
    """

    submission_id: str | None
    status: str
    entrypoint: str
    message: str
    error: str | None
    driver_exit_code: int | None
    started_ms: int | None
    ended_ms: int | None

    @property
    def is_over(self) -> bool:
        """Whether its status is final."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


def exit_code(job: Job) -> int:
    """The exit code of a job's command; 75 where the same command submitted again is the answer.

    That is so for a job that was stopped, and for one whose node died under it.
    """
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return RunAgainError.exit_code
    if job.driver_exit_code:
        return job.driver_exit_code if job.driver_exit_code > 0 else _SIGNAL_BASE - job.driver_exit_code
    return RunAgainError.exit_code if (job.error or "").endswith("ACTOR_DIED") else XmodalError.exit_code


class Cluster:
    """The Jobs API of one cluster.

    Args:
        address: of its dashboard, checked by :func:`~xmodal_dist.submit.request.check_address`.
        token: sent with every request; None sends none.

    Raises:
        AuthenticationError: it refuses the token, or asks for one.
        UsageError: nothing answers there.
    """

    def __init__(self, address: str, token: str | None) -> None:
        from ray.job_submission import JobSubmissionClient

        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        self.address = address
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with _address_in_force(address), _translated(address, UsageError):
            self._client: JobSubmissionClient = JobSubmissionClient(address, headers=headers)

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        with _translated(self.address):
            found = [_job(details) for details in self._client.list_jobs()]
        return sorted(found, key=lambda job: -(job.started_ms or 0))

    def job(self, submission_id: str) -> Job:
        """One job.

        Raises:
            UsageError: there is none of this id.
        """
        with _translated(self.address):
            return _job(self._client.get_job_info(submission_id))

    def submit(self, request: JobRequest, submission_id: str, package: Path) -> None:
        """Start a job.

        Args:
            request: what it is.
            submission_id: its id; new on this cluster.
            package: the zip that becomes its working directory.
        """
        arguments: dict[str, Any] = {
            "entrypoint": request.entrypoint,
            "submission_id": submission_id,
            "runtime_env": {"working_dir": str(package), "env_vars": request.env_vars},
            "metadata": {_METADATA_KEY: request.name},
        }
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        with _translated(self.address):
            while True:
                try:
                    self._client.submit_job(**arguments)
                    return
                except RuntimeError as error:  # a head that has just started
                    if "No available agent" not in str(error) or time.monotonic() > give_up_s:
                        raise
                time.sleep(1)

    def logs(self, submission_id: str) -> str:
        """What a job has printed so far."""
        with _translated(self.address):
            return str(self._client.get_job_logs(submission_id))

    def stop(self, submission_id: str) -> bool:
        """Ask a job to end; whether it was running."""
        with _translated(self.address):
            return bool(self._client.stop_job(submission_id))

    def follow(self, submission_id: str, write: Callable[[str], None]) -> Job:
        """Hand on what a job prints until it is over.

        Raises:
            RunAgainError: the cluster does not answer any more, where the job may go on; or its head was started anew.
            UsageError: there is none of this id.
        """
        self.job(submission_id)
        seen = 0
        while True:
            with _translated(self.address):
                seen = asyncio.run(self._tail(submission_id, write, seen))
                self._knock()
            try:
                job = self.job(submission_id)
            except UsageError as error:
                raise RunAgainError(
                    f"{self.address} does not know {submission_id} any more: its head was started anew. Give the same "
                    f"command again"
                ) from error
            if job.is_over:
                return job
            time.sleep(1)

    async def _tail(self, submission_id: str, write: Callable[[str], None], seen: int) -> int:
        """Hand on the log beyond its first ``seen`` characters until it ends or is silent; how many there are now."""
        from aiohttp import WSServerHandshakeError

        position, texts = 0, self._client.tail_job_logs(submission_id)
        try:
            while True:
                text = await asyncio.wait_for(anext(texts), _SILENCE_S)
                fresh = text[max(0, seen - position) :]
                position += len(text)
                if fresh:
                    write(fresh)
        except (StopAsyncIteration, asyncio.TimeoutError):
            pass
        except WSServerHandshakeError as error:  # of a head that was started anew
            if error.status != _NOT_FOUND:
                raise
        except RuntimeError as error:  # a connection that broke is made anew while the cluster answers
            if "WebSocket" not in str(error):
                raise
        return max(seen, position)

    def _knock(self) -> None:
        """Raise ConnectionError where nothing takes connections any more; Ray's client would wait for ever."""
        parts = urlsplit(self.address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((str(parts.hostname), port), timeout=_KNOCK_S).close()
        except OSError as error:
            raise ConnectionError(str(error)) from error


def _job(details: Any) -> Job:
    return Job(
        submission_id=details.submission_id,
        status=str(details.status.value),
        entrypoint=details.entrypoint,
        message=details.message or "",
        error=details.error_type,
        driver_exit_code=details.driver_exit_code,
        started_ms=details.start_time,
        ended_ms=details.end_time,
    )


@contextmanager
def _address_in_force(address: str) -> Iterator[None]:
    """Ray lets its environment variable overrule the argument; what was checked is what must be used."""
    saved = os.environ.get(_ADDRESS_VARIABLE)
    os.environ[_ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        del os.environ[_ADDRESS_VARIABLE]
        if saved is not None:
            os.environ[_ADDRESS_VARIABLE] = saved


@contextmanager
def _translated(address: str, lost: type[XmodalError] = RunAgainError) -> Iterator[None]:
    import aiohttp
    import ray.exceptions
    import requests

    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        reason = error.message.splitlines()[0]
        raise AuthenticationError(
            f"{address}: {reason}. Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token of this cluster"
        ) from error
    except aiohttp.WSServerHandshakeError as error:
        raise XmodalError(f"{address}: {error.status} {error.message}") from error
    except (ConnectionError, requests.ConnectionError, aiohttp.ClientError) as error:
        advice = (
            "is --address that of a dashboard, and its port forwarded?"
            if lost is UsageError
            else "give the same command again once it does: it follows the job where that still runs, and continues it "
            "where the head was lost"
        )
        raise lost(f"{address} does not answer: {advice}") from error
    except RuntimeError as error:
        reason = str(error)
        kind = UsageError if "does not exist" in reason else XmodalError
        raise kind(f"{address}: {reason}") from error
