"""Settings of scoring."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from xmodal_dist.settings import Settings

__all__ = ["ScoreSettings"]


class ScoreSettings(Settings):
    """How to score.

    Attributes:
        id_column: input column of the ids; None takes ``id`` where the input has it, else file and row name a record.
        columns: the bundle's column -> the input's, where they differ.
        split: of a packed dataset, only this split.
        media_root: where relative media paths start; None takes the folder of the input file.
        top_k: classes listed for each record; 0 leaves the column out.
        probabilities: add the probabilities of all classes.
        logits: add the logits of all classes.
        embedding: add the fused features that the prediction was made from.
        embeddings: add the features of each field, null where the record lacks it.
        contributions: add each field's Shapley value: how much of the predicted class's probability is its doing, null
            where the record lacks it. Takes 2^fields passes through the fusion, and one through the encoders as ever.
        modalities: add the fields that the record has; evaluation needs them.
        abstain_below: where the best class is less probable than this, give no label; None always gives one.
        target_precision: give no label below the lowest probability at which, on the records that the bundle was
            calibrated on, labels are right at least so often (with 95 % confidence); instead of ``abstain_below``.
        precision: of the model's arithmetic. ``auto`` is float32 on CPUs; on a GPU bfloat16 where it is faster and
            moves no probability of the first batch by more than 0.01.
        compile: ``auto`` compiles the encoders on a GPU, under the same conditions, once a worker's model has been at
            work for a minute; CPUs never do.
        passthrough: input columns copied to the output.
        evaluation: add the true class and the probabilities of every subset of the fields.
        unit_rows: rows of a unit, the piece that is read, committed and resumed as one.
        unit_bytes: bytes of a unit; whichever is reached first.
        batch_rows: records that the model is given at once; None finds the number by measuring. Either is halved where
            memory does not suffice.
        placement: ``local`` decodes in threads of the worker; ``ray`` in Ray tasks anywhere in the cluster; ``auto`` is
            ``ray`` where workers have GPUs: threads of one process decode little more than half as much there.
        threads: decoders at work for one worker; None takes one where it computes on a CPU, and its share of the
            cluster's CPUs where it has a GPU or tasks decode.
        max_bad_fraction: share of the input's records that may be rejected.
        max_bad_fraction_per_file: share of one input file's records that may be.
        partition_by: column of the output whose values become folders (``label=cat/``), as Hive, Spark and DuckDB read.
        max_attempts: attempts at a unit that may die before its records are scored in a process apart, where the one
            that kills its process is found and rejected.
    """

    id_column: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    split: str | None = None
    media_root: str | None = None
    top_k: int = Field(3, ge=0)
    probabilities: bool = False
    logits: bool = False
    embedding: bool = False
    embeddings: bool = False
    contributions: bool = False
    modalities: bool = True
    abstain_below: float | None = Field(None, ge=0, le=1)
    target_precision: float | None = Field(None, gt=0, le=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "never"] = "auto"
    passthrough: tuple[str, ...] = ()
    evaluation: bool = False
    unit_rows: int = Field(16_384, ge=1)
    unit_bytes: int = Field(64 << 20, ge=1)
    batch_rows: int | None = Field(None, ge=1)
    placement: Literal["auto", "local", "ray"] = "auto"
    threads: int | None = Field(None, ge=1)
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    max_bad_fraction_per_file: float = Field(1.0, ge=0, le=1)
    partition_by: str | None = None
    max_attempts: int = Field(3, ge=1)

    def identity(self) -> dict[str, Any]:
        """The settings that change the output: a resumed run must have the same."""
        same = {
            "batch_rows", "compile", "placement", "threads",
            "max_bad_fraction", "max_bad_fraction_per_file", "max_attempts",
        }  # fmt: skip
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in same}
