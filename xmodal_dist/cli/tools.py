"""Commands around the jobs: the demo, the check of machines, and settings."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from xmodal_dist.cli.options import AsJson, Config, Overrides, say, show, show_result
from xmodal_dist.errors import XmodalError

__all__ = ["config_encoders", "config_print", "config_schema", "config_validate", "demo", "doctor"]


def demo(
    output: Annotated[str, typer.Option(help="Directory for everything that the demo makes.")] = "runs/demo",
) -> None:
    """Run the main job on an embedded dataset: pack, train, evaluate, score, verify."""
    from xmodal_dist.demo import run_demo

    run_demo(output, say)


def doctor(
    path: Annotated[str | None, typer.Option(help="Where jobs will write; probed from every node.")] = None,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Ray head, or auto; none is started then.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="A packed dataset to examine as well.")] = None,
    config: Config = None,
    overrides: Overrides = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of this machine: says what training would cost.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, every node, storage and a dataset; every finding says what to do."""
    from xmodal_dist import api

    findings = api.doctor(
        path, address=address, data=data, config=config, set=overrides or (), price_per_hour=price_per_hour
    )
    table = Table("check", "", "seen", "what to do", box=None, pad_edge=False)
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    for finding in findings:
        level = f"[{colours[finding.level]}]{finding.level}[/]"
        table.add_row(escape(finding.check), level, escape(finding.seen), escape(finding.advice))
    show_result([f._asdict() for f in findings], as_json, lambda: show(table))
    if any(finding.level == "error" for finding in findings):
        raise XmodalError("a check failed: see above")


def config_print(config: Config = None, overrides: Overrides = None) -> None:
    """Print all settings as YAML: the defaults, with a file and overrides on top."""
    from xmodal_dist import config as configuration

    print(configuration.dump(configuration.load(config, overrides or ())), end="")


def config_encoders(as_json: AsJson = False) -> None:
    """List the encoders that fields may name, with their options."""
    from xmodal_dist import config as configuration

    lines = configuration.encoders()
    table = Table("kind", "encoder", "what it is", "encoder_options", box=None, pad_edge=False)
    for line in lines:
        options = ", ".join(f"{name}={json.dumps(value)}" for name, value in line.options.items())
        name = escape(line.encoder) + (" (default)" if line.is_default else "")
        table.add_row(line.kind, name, escape(line.summary), escape(options))
    show_result([line._asdict() for line in lines], as_json, lambda: show(table))


def config_schema() -> None:
    """Print the JSON schema of a configuration file, for editors."""
    from xmodal_dist import config as configuration

    print(configuration.json_schema())


def config_validate(file: Annotated[str, typer.Argument(help="YAML file of settings.")]) -> None:
    """Check a configuration file."""
    from xmodal_dist import config as configuration

    configuration.load(file)
    say(f"{file}: ok")
