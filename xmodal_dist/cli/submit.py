"""Commands that run the other commands on a cluster elsewhere, and watch them there."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from xmodal_dist.cli.options import AsJson, say, show, show_result
from xmodal_dist.errors import UsageError
from xmodal_dist.submit.client import Cluster, Job, exit_code
from xmodal_dist.submit.request import DEFAULT_ADDRESS, check_address, find_token, next_attempt, plan_request

__all__ = ["build", "list_jobs", "logs", "status", "stop"]

_PATHS = ("bundle", "data", "dataset", "input", "more", "output", "path", "runs")
"""Parameters of commands that name data, which the packaged tree does not hold."""

_Address = Annotated[
    str | None,
    typer.Option(
        "--address", help=f"The cluster's dashboard; default: RAY_API_SERVER_ADDRESS, else {DEFAULT_ADDRESS}."
    ),
]
_Insecure = Annotated[bool, typer.Option("--insecure", help="Allow a cluster elsewhere without a token.")]
_SubmissionId = Annotated[str, typer.Argument(metavar="ID", help="As printed when the job was submitted.")]


def build(commands: Iterable[Callable[..., None]]) -> typer.Typer:
    """The ``submit`` command over the given ones: each becomes a command of the same name and arguments."""
    app = typer.Typer(
        help="Run a command on a Ray cluster elsewhere; watch and stop what runs there.", no_args_is_help=True
    )
    for command in commands:
        name = command.__name__.replace("_", "-")
        passes_on = {"allow_extra_args": True, "ignore_unknown_options": True}
        help_text = f"Run `xmodal {name}` on the cluster, with its arguments and these."
        app.command(name, help=help_text, context_settings=passes_on)(_job_command(name, command))
    for watch in (status, logs, stop, list_jobs):
        app.command(watch.__name__.removesuffix("_jobs"))(watch)
    return app


def _job_command(name: str, command: Callable[..., None]) -> Callable[..., None]:
    def submit_job(
        context: typer.Context,
        address: _Address = None,
        env: Annotated[
            list[str] | None,
            typer.Option(
                "--env", metavar="NAME=VALUE", help="For the job; NAME=env:OTHER takes OTHER of each node."
            ),
        ] = None,
        working_dir: Annotated[
            Path, typer.Option(help="What is sent along and becomes the job's directory.")
        ] = Path(),
        exclude: Annotated[list[str] | None, typer.Option(help="Leave out files of this pattern.")] = None,
        wait: Annotated[
            bool, typer.Option("--wait/--no-wait", help="Follow the job, and end as it ends.")
        ] = True,
        insecure: _Insecure = False,
    ) -> None:
        from xmodal_dist.submit.package import files_to_send, write_package

        arguments = _checked(command, name, context.args)
        request = plan_request(name, arguments, env or ())
        cluster = _connect(address, insecure)
        known = {job.submission_id: job.status for job in cluster.jobs() if job.submission_id}
        attempt = next_attempt(request.name, known)
        if attempt.is_under_way:
            _note(f"{attempt.submission_id} runs this command already; following it")
        else:
            with tempfile.TemporaryDirectory() as folder:
                package = Path(folder) / "tree.zip"
                count = write_package(working_dir, files_to_send(working_dir, exclude or ()), package)
                cluster.submit(request, attempt.submission_id, package)
            _note(f"{attempt.submission_id}: submitted with {count} files of {working_dir.resolve()}")
        if not wait:
            say(attempt.submission_id)
            return
        _follow(cluster, attempt.submission_id)

    return submit_job


def _checked(command: Callable[..., None], name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments, found right by the command itself; a run that could be resumed will be.

    Raises:
        UsageError: a path means nothing on the cluster.
    """
    alone = typer.Typer(add_completion=False)
    alone.command(name)(command)
    parsed = typer.main.get_command(alone).make_context(name, list(arguments)).params
    for parameter, path in _paths(parsed):
        if "://" not in path and not path.startswith("/"):
            raise UsageError(
                f"{parameter} {path!r} is relative, and the job starts in a copy of the working tree that goes when it "
                f"ends: give an absolute path or a URI that every node of the cluster reaches"
            )
    return [*arguments, *(["--resume"] if parsed.get("resume") is False else [])]


def _paths(parsed: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for parameter in _PATHS:
        value = parsed.get(parameter)
        for path in [value] if isinstance(value, str) else value or ():
            yield parameter, path


def status(
    submission_id: _SubmissionId,
    address: _Address = None,
    insecure: _Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Show a job; the exit code is 0 whatever its status."""
    job = _connect(address, insecure).job(submission_id)
    text = f"{job.status}  {job.entrypoint}\n{job.message}".rstrip()
    show_result(job._asdict(), as_json, lambda: say(text))


def logs(
    submission_id: _SubmissionId,
    address: _Address = None,
    insecure: _Insecure = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until it ends; then end as it ended.")
    ] = False,
) -> None:
    """Print what a job has printed."""
    cluster = _connect(address, insecure)
    if follow:
        _follow(cluster, submission_id)
    print(cluster.logs(submission_id), end="", flush=True)


def stop(submission_id: _SubmissionId, address: _Address = None, insecure: _Insecure = False) -> None:
    """Stop a job; its command submitted again continues it."""
    cluster = _connect(address, insecure)
    was_running = cluster.stop(submission_id)
    say("asked it to stop" if was_running else f"it is over already: {cluster.job(submission_id).status}")


def list_jobs(address: _Address = None, insecure: _Insecure = False, as_json: AsJson = False) -> None:
    """List the jobs of a cluster, the newest first."""
    jobs = _connect(address, insecure).jobs()
    table = Table("id", "status", "started", "seconds", "command", box=None, pad_edge=False)
    for job in jobs:
        table.add_row(job.submission_id or "-", job.status, _time(job), _seconds(job), escape(job.entrypoint))
    show_result([job._asdict() for job in jobs], as_json, lambda: show(table))


def _connect(address: str | None, insecure: bool) -> Cluster:
    address = (address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS).rstrip("/")
    token = find_token(os.environ, Path.home())
    if warning := check_address(address, token, insecure=insecure):
        _note(warning)
    return Cluster(address, token)


def _follow(cluster: Cluster, submission_id: str) -> NoReturn:
    try:
        job = cluster.follow(submission_id, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        _note(f"the job goes on; end it with: xmodal submit stop {submission_id} --address {cluster.address}")
        raise
    reason = job.message.partition(", last available logs")[0]  # which were shown just now
    _note(f"{submission_id}: {job.status}: {reason}")
    raise typer.Exit(exit_code(job))


def _note(text: str) -> None:
    print(f"xmodal submit: {text}", file=sys.stderr, flush=True)


def _time(job: Job) -> str:
    return (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started_ms / 1000)) if job.started_ms else "-"
    )


def _seconds(job: Job) -> str:
    return f"{(job.ended_ms - job.started_ms) / 1000:.0f}" if job.started_ms and job.ended_ms else "-"
