"""Which columns of tables the model needs: permutation importance (Breiman 2001; Fisher et al. 2019).

A column's values are dealt out anew among the records, missing ones included, and everything else stays: how much
accuracy falls and log loss rises tells what the model takes from the column, beside all that it has from the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from xmodal_dist.bundle import Bundle
from xmodal_dist.explain.sample import held
from xmodal_dist.metrics import log_loss
from xmodal_dist.modalities.fields import FieldSpec
from xmodal_dist.pipeline.rows import one_chunk

__all__ = ["REPEATS", "Part", "permutation_importance"]

REPEATS = 5
_SEED = 0


class Part(NamedTuple):
    """Some records as the model met them.

    Attributes:
        present: [n, M], on the model's device.
        outputs: what each field's encoder gave for the rows that it saw.
    """

    present: torch.Tensor
    outputs: dict[str, Any]


def permutation_importance(
    bundle: Bundle,
    spec: FieldSpec,
    table: pa.Table,
    parts: Sequence[Part],
    truth: NDArray[np.int64],
    repeats: int = REPEATS,
) -> list[dict[str, Any]]:
    """Importance of each column of a field, JSON-able.

    Args:
        bundle: the model.
        spec: the field.
        table: the columns of the field for all records of ``parts``, in order.
        parts: the records.
        truth: [n] class index, -1 for a class that the model does not know.
        repeats: how often each column is dealt out.

    Returns:
        Per column ``field``, ``column``, and mean and standard deviation over the repeats of ``accuracy_drop`` and
        ``log_loss_rise``; the latter over records of known classes, None without any.
    """
    columns = [one_chunk(table.column(name)) for name in spec.columns]
    rng = np.random.default_rng(_SEED)
    whole = _scores(bundle, spec, columns, parts, truth)
    found = []
    for place, name in enumerate(spec.columns):
        scores = []
        for _ in range(repeats):
            dealt = columns[place].take(pa.array(rng.permutation(len(truth))))
            changed = [dealt if i == place else column for i, column in enumerate(columns)]
            scores.append(_scores(bundle, spec, changed, parts, truth))
        drops = [whole[0] - accuracy for accuracy, _ in scores]
        rises = [loss - whole[1] for _, loss in scores if loss is not None and whole[1] is not None]
        found.append(
            {
                "field": spec.name,
                "column": name,
                **_spread("accuracy_drop", drops),
                **_spread("log_loss_rise", rises),
            }
        )
    return found


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    some = len(values) > 0
    return {
        name: float(np.mean(values)) if some else None,
        f"{name}_sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }


def _scores(
    bundle: Bundle,
    spec: FieldSpec,
    columns: Sequence[pa.Array],
    parts: Sequence[Part],
    truth: NDArray[np.int64],
) -> tuple[float, float | None]:
    """Accuracy and log loss with these columns in place of the field's."""
    probabilities = np.concatenate(list(_predictions(bundle, spec, columns, parts)))
    known = truth >= 0
    accuracy = float((probabilities.argmax(axis=1) == truth).mean())
    return accuracy, log_loss(truth[known], probabilities[known]) if known.any() else None


@torch.inference_mode()
def _predictions(
    bundle: Bundle, spec: FieldSpec, columns: Sequence[pa.Array], parts: Sequence[Part]
) -> Iterator[NDArray[np.float32]]:
    """[n, C] of each part; only this field's encoder runs."""
    modality, model = spec.modality, bundle.model.eval()
    decoded = modality.decode(spec.settings, spec.fitted, columns, None)
    place, start = model.fields.index(spec.name), 0
    for part in parts:
        rows = slice(start, start + len(part.present))
        start = rows.stop
        device = part.present.device
        own = {
            name: torch.from_numpy(array[rows].copy()).to(device) for name, array in decoded.arrays.items()
        }
        tensors = modality.transform(spec.settings, spec.fitted, own, None)
        present = part.present.clone()
        present[:, place] = torch.from_numpy(decoded.present[rows].copy()).to(device)
        others = {name: output for name, output in part.outputs.items() if name != spec.name}
        inputs = {name: tensors if name == spec.name else {} for name in model.fields}
        with held(bundle.model, others):
            fused = model(inputs, present).fused
        yield (fused.float() / bundle.temperatures(present)).softmax(dim=-1).cpu().numpy()
