"""Making and checking data."""

from __future__ import annotations

import json
from collections.abc import Sequence

from xmodal_dist import config as configuration
from xmodal_dist import storage
from xmodal_dist.bundle import check_files
from xmodal_dist.dataset.inspect import Inspection, inspect_dataset
from xmodal_dist.dataset.manifest import MANIFEST_NAME, Manifest
from xmodal_dist.dataset.schema import Field, parse_field
from xmodal_dist.dataset.verify import VerifyResult, verify_dataset
from xmodal_dist.doctor.cluster import examine_cluster
from xmodal_dist.doctor.dataset import examine_dataset
from xmodal_dist.doctor.finding import Finding
from xmodal_dist.doctor.machine import examine_machine
from xmodal_dist.errors import UsageError
from xmodal_dist.ingest import pack as packing
from xmodal_dist.progress import ConsoleProgress
from xmodal_dist.score.verify import verify_scoring

__all__ = ["doctor", "inspect", "pack", "verify"]


def pack(
    source: str,
    dataset: str,
    *,
    field: Sequence[str | Field] = (),
    label: str | None = None,
    label_separator: str | None = None,
    id: str | None = None,
    split: str | None = None,
    split_ratio: tuple[float, float, float] | None = None,
    overwrite: bool = False,
    config: str | None = None,
    set: Sequence[str] = (),
) -> Manifest:
    """Pack raw records into a dataset.

    Args:
        source: CSV, JSONL or Parquet (file, glob, folder), or a folder of class folders.
        dataset: directory or URI to write.
        field: fields as ``NAME=KIND[:COLUMN,...]``; none infers all of them.
        label: column of the class, or of a list of classes.
        label_separator: between the classes of a label where a record may be of several; lists need none.
        id: column of the record's id.
        split: column of the split.
        split_ratio: shares of train, val and test where no column says.
        overwrite: replace a dataset that is there.
        config: YAML file; its ``pack`` section counts here.
        set: overrides like ``pack.seed=1``.
    """
    if split is not None and split_ratio is not None:
        raise UsageError(
            "--split takes the splits from a column, --split-ratio makes them: give one of the two"
        )
    overrides = list(set)
    if split_ratio is not None:
        overrides.append(f"pack.split_ratio={list(split_ratio)}")
    if label_separator is not None:
        overrides.append(f"pack.label_separator={json.dumps(label_separator)}")
    fields = [parse_field(f) if isinstance(f, str) else f for f in field]
    settings = configuration.load(config, overrides).pack
    with ConsoleProgress("packing") as progress:
        return packing.pack(
            source,
            storage.absolute(dataset),
            fields=fields or None,
            label=label,
            id_column=id,
            split_column=split,
            settings=settings,
            overwrite=overwrite,
            progress=progress,
        )


def inspect(dataset: str) -> Inspection:
    """What is in a packed dataset, and what looks wrong."""
    return inspect_dataset(storage.absolute(dataset))


def verify(path: str, *, reread_input: bool = False) -> VerifyResult:
    """Check a dataset, a bundle or scoring output against its manifest, to the byte.

    Args:
        path: directory of any of them.
        reread_input: of scoring output, hash the ids of its input again.

    Raises:
        UsageError: it is none of them.
    """
    path = storage.absolute(path)
    if storage.exists(storage.join(path, MANIFEST_NAME)):
        return verify_dataset(path)
    if storage.exists(storage.join(path, "MANIFEST.json")):
        return VerifyResult(lost=0, duplicated=0, failed_checks=check_files(path))
    if storage.exists(storage.join(path, "_run.json")):
        return verify_scoring(path, reread_input=reread_input)
    raise UsageError(
        f"{path!r} is not a dataset (manifest.json), a bundle (MANIFEST.json) or scoring output (_run.json)"
    )


def doctor(
    path: str | None = None,
    *,
    address: str | None = None,
    data: str | None = None,
    config: str | None = None,
    set: Sequence[str] = (),
    price_per_hour: float | None = None,
) -> list[Finding]:
    """Check this machine, every node of the cluster, and perhaps a dataset with its settings.

    Args:
        path: directory or URI that jobs will write to, from this machine and from every node.
        address: ``HOST:PORT`` of a Ray cluster's head, or ``auto``; None takes ``RAY_ADDRESS``, else starts Ray here.
        data: a packed dataset; a few of its records are read and trained on.
        config: YAML file of settings that the dataset is examined with.
        set: overrides like ``train.batch_size=128``.
        price_per_hour: of this machine, to say what training would cost.
    """
    settings = configuration.load(config, set)
    findings = [*examine_machine(path), *examine_cluster(address, path)]
    if data is not None:
        findings += examine_dataset(
            storage.absolute(data),
            fields=settings.fields,
            model=settings.model,
            train=settings.train,
            pipeline=settings.pipeline,
            score=settings.score,
            price_per_hour=price_per_hour,
        )
    return findings
