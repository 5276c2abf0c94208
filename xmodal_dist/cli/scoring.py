"""Commands that score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from xmodal_dist.cli.options import AsJson, BundlePath, Config, NumWorkers, Overrides, say, show_result
from xmodal_dist.score.goodput import goodput_line

if TYPE_CHECKING:  # what scores is slow to import
    from xmodal_dist.score.job import ScoreResult

__all__ = ["gc", "retry", "score"]


def score(
    bundle: BundlePath,
    input: Annotated[
        list[str], typer.Option("--input", help="Parquet file, glob, folder or packed dataset.")
    ],
    output: Annotated[str, typer.Option("--output", help="Directory to write.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="PATH...", help="More inputs.")] = None,
    config: Config = None,
    overrides: Overrides = None,
    num_workers: NumWorkers = None,
    as_json: AsJson = False,
) -> None:
    """Score records; the same command again continues a run that was stopped."""
    from xmodal_dist import api

    result = api.score(
        bundle, [*input, *(more or ())], output, config=config, set=overrides or (), num_workers=num_workers
    )
    show_result(result.manifest, as_json, lambda: _say_scored(result))


def retry(
    output: Annotated[str, typer.Argument(help="Output of a finished scoring run.")],
    bundle: Annotated[str | None, typer.Option(help="Its bundle, if it is not where it was.")] = None,
    config: Config = None,
    overrides: Overrides = None,
    num_workers: NumWorkers = None,
    as_json: AsJson = False,
) -> None:
    """Score the records in a run's quarantine again, and add what comes out to its output."""
    from xmodal_dist import api

    result = api.retry(output, bundle=bundle, config=config, set=overrides or (), num_workers=num_workers)
    show_result(result.manifest, as_json, lambda: _say_scored(result))


def gc(
    output: Annotated[str, typer.Argument(help="Output of a finished scoring run.")],
    as_json: AsJson = False,
) -> None:
    """Remove what attempts and drivers of a finished scoring run left behind."""
    from xmodal_dist import api

    found = api.gc(output)
    show_result(found._asdict(), as_json, lambda: say(f"{found.files} files, {found.bytes} bytes removed"))


def _say_scored(result: ScoreResult) -> None:
    found, output = result.manifest, result.output
    say(f"{found.rows_in} records read = {found.rows_ok} scored + {found.rows_bad} quarantined")
    shifted = [row for row in result.drift or () if row["level"] in ("moderate", "major")]
    for row in shifted:
        what = f"{row['field']}: {row['measure']}" if row["field"] else row["measure"]
        say(f"{row['level']} drift of {what} against the training data (PSI {row['psi']:.2f})")
    if result.goodput is not None:
        say(goodput_line(result.goodput))
    say(f"predictions: {output}/data\nreport:      {output}/report.html")
