"""The command line: arguments in, a result on stdout, progress on stderr, and the exit codes of ``errors``."""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from xmodal_dist.errors import UsageError, VerificationError, XmodalError
from xmodal_dist.score.goodput import goodput_line
from xmodal_dist.version import __version__

if TYPE_CHECKING:  # what scores is slow to import
    from xmodal_dist.score.job import ScoreResult

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

_Config = Annotated[str | None, typer.Option("--config", help="YAML file of settings.")]
_Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override a setting; may be repeated."),
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_NumWorkers = Annotated[
    int | None, typer.Option("--num-workers", min=1, help="Workers; default: by the hardware.")
]
_BundlePath = Annotated[str, typer.Option("--bundle", help="The trained model, for example RUN/bundle.")]
_DataPath = Annotated[str, typer.Option("--data", help="A packed dataset.")]


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


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="Directory for everything that the demo makes.")] = "runs/demo",
) -> None:
    """Run the main job on an embedded dataset: pack, train, evaluate, score, verify."""
    from xmodal_dist.demo import run_demo

    run_demo(output, _say)


@app.command()
def pack(
    source: Annotated[str, typer.Argument(help="CSV, JSONL, Parquet, or a folder of class folders.")],
    dataset: Annotated[str, typer.Argument(help="Directory or URI of the dataset to write.")],
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME=KIND[:COL,...]", help="A field; none infers all of them."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of the class; default: label.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Column of the record's id.")] = None,
    split: Annotated[str | None, typer.Option(help="Column of the split.")] = None,
    split_ratio: Annotated[
        str | None,
        typer.Option("--split-ratio", metavar="TRAIN,VAL,TEST", help="For example 0.8,0.1,0.1."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that is there.")] = False,
    config: _Config = None,
    overrides: _Overrides = None,
    as_json: _AsJson = False,
) -> None:
    """Pack raw records into a dataset."""
    from xmodal_dist import api

    manifest = api.pack(
        source,
        dataset,
        field=field or (),
        label=label,
        id=id_column,
        split=split,
        split_ratio=_ratio(split_ratio),
        overwrite=overwrite,
        config=config,
        set=overrides or (),
    )
    counts = ", ".join(f"{name} {summary.rows}" for name, summary in manifest.splits.items())
    fields = ", ".join(f"{f.name} ({f.kind})" for f in manifest.fields)
    lines = [
        f"{dataset}: {manifest.source_rows} records read = {counts} + {manifest.quarantined_rows} quarantined",
        f"{len(manifest.classes)} classes; fields: {fields}",
        *manifest.notes,
    ]
    _result(manifest, as_json, lambda: _say("\n".join(lines)))


@app.command()
def inspect(
    dataset: Annotated[str, typer.Argument(help="A packed dataset.")], as_json: _AsJson = False
) -> None:
    """Show a dataset, and what looks wrong in it."""
    from xmodal_dist import api
    from xmodal_dist.dataset.inspect import render_inspection

    inspection = api.inspect(dataset)
    _result(inspection, as_json, lambda: _print(*render_inspection(inspection)))


@app.command()
def train(
    data: _DataPath,
    output: Annotated[str, typer.Option("--output", help="Run directory to write.")] = "runs/train",
    config: _Config = None,
    overrides: _Overrides = None,
    num_workers: _NumWorkers = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Train a classifier on a packed dataset."""
    from xmodal_dist import api

    result = api.train(
        data, output, config=config, set=overrides or (), num_workers=num_workers, resume=resume
    )
    figures = _figures(result.metrics, "accuracy", "macro_f1", "loss")
    text = f"trained {result.metrics['epochs']} epochs, best {result.metrics['best_epoch']}; validation: {figures}"
    _result(
        result._asdict(),
        as_json,
        lambda: _say(f"{text}\nmodel:  {result.bundle}\nreport: {result.run}/report.html"),
    )


@app.command()
def evaluate(
    bundle: _BundlePath,
    data: _DataPath,
    output: Annotated[str, typer.Option("--output", help="Directory to write.")],
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    num_workers: _NumWorkers = None,
    as_json: _AsJson = False,
) -> None:
    """Evaluate a model: exact metrics, also for every subset of its modalities."""
    from xmodal_dist import api

    metrics = api.evaluate(bundle, data, output, split=split, num_workers=num_workers)
    _result(metrics, as_json, lambda: _print(*_evaluation_tables(metrics), f"report: {output}/report.html"))


@app.command()
def compare(
    bundle: _BundlePath,
    data: _DataPath,
    output: Annotated[str, typer.Option("--output", help="Directory to write.")],
    split: Annotated[str, typer.Option(help="Split to compare on.")] = "test",
    baselines: Annotated[str, typer.Option(metavar="NAME,...", help="Classical models; none: all.")] = "",
    fields: Annotated[str, typer.Option(metavar="NAME,...", help="Fields to compare with; none: all.")] = "",
    max_rows: Annotated[int, typer.Option(min=1, help="Rows that classical models are fitted to.")] = 10_000,
    num_workers: _NumWorkers = None,
    as_json: _AsJson = False,
) -> None:
    """Compare a model with classical ones on the same rows, and say whether it wins."""
    from xmodal_dist import api
    from xmodal_dist.baselines.result import render_comparison

    found = api.compare(
        bundle,
        data,
        output,
        split=split,
        baselines=_names(baselines),
        fields=_names(fields),
        max_rows=max_rows,
        num_workers=num_workers,
    )
    _result(found, as_json, lambda: _print(*render_comparison(found), f"report: {output}/report.html"))


@app.command()
def score(
    bundle: _BundlePath,
    input: Annotated[
        list[str], typer.Option("--input", help="Parquet file, glob, folder or packed dataset.")
    ],
    output: Annotated[str, typer.Option("--output", help="Directory to write.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="PATH...", help="More inputs.")] = None,
    config: _Config = None,
    overrides: _Overrides = None,
    num_workers: _NumWorkers = None,
    as_json: _AsJson = False,
) -> None:
    """Score records; the same command again continues a run that was stopped."""
    from xmodal_dist import api

    result = api.score(
        bundle, [*input, *(more or ())], output, config=config, set=overrides or (), num_workers=num_workers
    )
    _result(result.manifest, as_json, lambda: _say_scored(result))


@app.command()
def retry(
    output: Annotated[str, typer.Argument(help="Output of a finished scoring run.")],
    bundle: Annotated[str | None, typer.Option(help="Its bundle, if it is not where it was.")] = None,
    config: _Config = None,
    overrides: _Overrides = None,
    num_workers: _NumWorkers = None,
    as_json: _AsJson = False,
) -> None:
    """Score the records in a run's quarantine again, and add what comes out to its output."""
    from xmodal_dist import api

    result = api.retry(output, bundle=bundle, config=config, set=overrides or (), num_workers=num_workers)
    _result(result.manifest, as_json, lambda: _say_scored(result))


@app.command()
def gc(
    output: Annotated[str, typer.Argument(help="Output of a finished scoring run.")],
    as_json: _AsJson = False,
) -> None:
    """Remove what attempts and drivers of a finished scoring run left behind."""
    from xmodal_dist import api

    found = api.gc(output)
    _result(found._asdict(), as_json, lambda: _say(f"{found.files} files, {found.bytes} bytes removed"))


@app.command()
def verify(
    path: Annotated[str, typer.Argument(help="A dataset, a bundle, or scoring output.")],
    reread_input: Annotated[
        bool, typer.Option("--reread-input", help="Of scoring output, hash the ids of the input again.")
    ] = False,
    as_json: _AsJson = False,
) -> None:
    """Check a dataset, a bundle or scoring output to the byte."""
    from xmodal_dist import api

    found = api.verify(path, reread_input=reread_input)
    summary = f"lost={found.lost} duplicated={found.duplicated} failed_checks={len(found.failed_checks)}"
    _result(found._asdict(), as_json, lambda: _say("\n".join([*found.failed_checks, summary])))
    if found.lost or found.duplicated or found.failed_checks:
        raise VerificationError(f"{path} did not pass: {summary}")


@app.command()
def doctor(
    path: Annotated[str | None, typer.Option(help="Where jobs will write; probed.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Check this machine, Ray and storage; every finding says what to do."""
    from xmodal_dist import api

    findings = api.doctor(path)
    table = Table("check", "", "seen", "what to do", box=None, pad_edge=False)
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    for finding in findings:
        level = f"[{colours[finding.level]}]{finding.level}[/]"
        table.add_row(finding.check, level, finding.seen, finding.advice)
    _result([f._asdict() for f in findings], as_json, lambda: _print(table))
    if any(finding.level == "error" for finding in findings):
        raise XmodalError("a check failed: see above")


@_config_app.command("print")
def config_print(config: _Config = None, overrides: _Overrides = None) -> None:
    """Print all settings as YAML: the defaults, with a file and overrides on top."""
    from xmodal_dist import config as configuration

    print(configuration.dump(configuration.load(config, overrides or ())), end="")


@_config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a configuration file, for editors."""
    from xmodal_dist import config as configuration

    print(configuration.json_schema())


@_config_app.command("validate")
def config_validate(file: Annotated[str, typer.Argument(help="YAML file of settings.")]) -> None:
    """Check a configuration file."""
    from xmodal_dist import config as configuration

    configuration.load(file)
    _say(f"{file}: ok")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _ratio(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--split-ratio {text!r}: expected three numbers, for example 0.8,0.1,0.1") from None
    return train, val, test


def _evaluation_tables(metrics: dict[str, Any]) -> list[Table]:
    whole = Table(
        "rows", "accuracy", "balanced", "macro F1", "AUROC", "log loss", "ECE", box=None, pad_edge=False
    )
    names = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss", "ece")
    whole.add_row(str(metrics["rows"]), *(_number(metrics[name]) for name in names))
    parts = Table(
        "modalities shown", "accuracy", "macro F1", "rows with all of them", box=None, pad_edge=False
    )
    for name, values in metrics["per_subset"].items():
        parts.add_row(
            name, _number(values["accuracy"]), _number(values["macro_f1"]), str(values["rows_present"])
        )
    return [whole, parts]


def _figures(metrics: dict[str, Any], *names: str) -> str:
    return (
        ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics) or "none (no val split)"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _say_scored(result: ScoreResult) -> None:
    found, output = result.manifest, result.output
    _say(f"{found.rows_in} records read = {found.rows_ok} scored + {found.rows_bad} quarantined")
    shifted = [row for row in result.drift or () if row["level"] in ("moderate", "major")]
    for row in shifted:
        what = f"{row['field']}: {row['measure']}" if row["field"] else row["measure"]
        _say(f"{row['level']} drift of {what} against the training data (PSI {row['psi']:.2f})")
    if result.goodput is not None:
        _say(goodput_line(result.goodput))
    _say(f"predictions: {output}/data\nreport:      {output}/report.html")


def _result(content: Any, as_json: bool, show: Callable[[], None]) -> None:
    """The one place where a result goes to stdout."""
    if not as_json:
        show()
    elif isinstance(content, BaseModel):
        print(content.model_dump_json(indent=1))
    else:
        plain = content if isinstance(content, dict | list) else dataclasses.asdict(content)
        print(json.dumps(plain, indent=1, ensure_ascii=False, default=str))


def _say(text: str) -> None:
    print(text, flush=True)


def _print(*parts: Any) -> None:
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140, highlight=False)
    for part in parts:
        console.print(part)


if __name__ == "__main__":
    main()
