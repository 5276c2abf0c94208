"""Commands that make, show and check data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from xmodal_dist.cli.options import AsJson, Config, Overrides, say, show, show_result
from xmodal_dist.errors import UsageError, VerificationError

if TYPE_CHECKING:  # slow to import
    from xmodal_dist.dataset.manifest import Manifest

__all__ = ["inspect", "pack", "verify"]


def pack(
    source: Annotated[str, typer.Argument(help="CSV, JSONL, Parquet, or a folder of class folders.")],
    dataset: Annotated[str, typer.Argument(help="Directory or URI of the dataset to write.")],
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME=KIND[:COL,...]", help="A field; none infers all of them."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of the class; default: label.")] = None,
    label_separator: Annotated[
        str | None, typer.Option("--label-separator", help="Between the classes of a record of several.")
    ] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Column of the record's id.")] = None,
    split: Annotated[str | None, typer.Option(help="Column of the split.")] = None,
    split_ratio: Annotated[
        str | None,
        typer.Option("--split-ratio", metavar="TRAIN,VAL,TEST", help="For example 0.8,0.1,0.1."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that is there.")] = False,
    config: Config = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Pack raw records into a dataset."""
    from xmodal_dist import api

    manifest = api.pack(
        source,
        dataset,
        field=field or (),
        label=label,
        label_separator=label_separator,
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
        f"{_classes(manifest)}; fields: {fields}",
        *manifest.notes,
    ]
    show_result(manifest, as_json, lambda: say("\n".join(lines)))


def inspect(
    dataset: Annotated[str, typer.Argument(help="A packed dataset.")], as_json: AsJson = False
) -> None:
    """Show a dataset, and what looks wrong in it."""
    from xmodal_dist import api
    from xmodal_dist.dataset.inspect import render_inspection

    inspection = api.inspect(dataset)
    show_result(inspection, as_json, lambda: show(*render_inspection(inspection)))


def verify(
    path: Annotated[str, typer.Argument(help="A dataset, a bundle, or scoring output.")],
    reread_input: Annotated[
        bool, typer.Option("--reread-input", help="Of scoring output, hash the ids of the input again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a dataset, a bundle or scoring output to the byte."""
    from xmodal_dist import api

    found = api.verify(path, reread_input=reread_input)
    summary = f"lost={found.lost} duplicated={found.duplicated} failed_checks={len(found.failed_checks)}"
    show_result(found._asdict(), as_json, lambda: say("\n".join([*found.failed_checks, summary])))
    if found.lost or found.duplicated or found.failed_checks:
        raise VerificationError(f"{path} did not pass: {summary}")


def _classes(manifest: Manifest) -> str:
    named = f"{len(manifest.classes)} classes"
    if manifest.task == "multiclass":
        return named
    rows = sum(summary.rows for summary in manifest.splits.values())
    said = sum(sum(summary.classes.values()) for summary in manifest.splits.values())
    return f"{named}, {said / rows:.2f} a record"


def _ratio(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--split-ratio {text!r}: expected three numbers, for example 0.8,0.1,0.1") from None
    return train, val, test
