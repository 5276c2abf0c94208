"""What commands have in common: options, and the one place where results go to stdout."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

__all__ = [
    "AsJson",
    "BundlePath",
    "Config",
    "DataPath",
    "NumWorkers",
    "Overrides",
    "number",
    "say",
    "show",
    "show_result",
]

Config = Annotated[str | None, typer.Option("--config", "-c", help="YAML file of settings.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a setting; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
NumWorkers = Annotated[
    int | None, typer.Option("--num-workers", min=1, help="Workers; default: by the hardware.")
]
BundlePath = Annotated[str, typer.Option("--bundle", help="The trained model, for example RUN/bundle.")]
DataPath = Annotated[str, typer.Option("--data", help="A packed dataset.")]


def show_result(content: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print a result: as JSON, or as ``show`` does for people."""
    if not as_json:
        show()
    elif isinstance(content, BaseModel):
        print(content.model_dump_json(indent=1))
    else:
        plain = content if isinstance(content, dict | list) else dataclasses.asdict(content)
        print(json.dumps(plain, indent=1, ensure_ascii=False, default=str))


def say(text: str) -> None:
    """A line for people."""
    print(text, flush=True)


def show(*parts: Any) -> None:
    """Tables and lines for people."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140, highlight=False)
    for part in parts:
        console.print(part)


def number(value: float | None) -> str:
    """Four decimals; a dash for None."""
    return "-" if value is None else f"{value:.4f}"
