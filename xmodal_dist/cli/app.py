"""The command line: arguments in, a result on stdout, progress on stderr, and the exit codes of ``errors``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from xmodal_dist.cli import data, evaluation, planning, scoring, submit, tools, training, tuning
from xmodal_dist.errors import XmodalError
from xmodal_dist.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="xmodal",
    help="Train cross-modal classifiers on Ray, and score very large datasets with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_config_app = typer.Typer(
    help="Settings of a run: defaults, schema, and the check of a file.", no_args_is_help=True
)
app.add_typer(_config_app, name="config")

_COMMANDS: tuple[Callable[..., None], ...] = (
    tools.demo, data.pack, data.inspect, training.train, training.find_lr, training.report,
    evaluation.evaluate, evaluation.compare, evaluation.calibrate, evaluation.explain,
    scoring.score, scoring.retry, scoring.gc, data.verify, tools.doctor,
    planning.plan,
)  # fmt: skip
_tune_app = typer.Typer(invoke_without_command=True)
app.add_typer(_tune_app, name="tune", help=tuning.tune.__doc__)
for command in _COMMANDS:
    app.command()(command)
_tune_app.callback()(tuning.tune)
_tune_app.command("show")(tuning.show_search)
_LOCAL = (tools.demo, planning.plan)
app.add_typer(
    submit.build([tuning.tune, *(command for command in _COMMANDS if command not in _LOCAL)]), name="submit"
)
_config_app.command("print")(tools.config_print)
_config_app.command("encoders")(tools.config_encoders)
_config_app.command("schema")(tools.config_schema)
_config_app.command("validate")(tools.config_validate)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        app(args=given, prog_name="xmodal")
    except XmodalError as error:
        if debug:
            traceback.print_exc()
        print(f"xmodal: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"xmodal-dist {__version__}")
        raise typer.Exit()
