"""What a label is, one class a record or any set of classes, and what follows from it for targets, losses and outputs.

There are two tasks, :data:`MULTICLASS` and :data:`MULTILABEL`; a dataset's manifest and a bundle name theirs, and
:func:`task_of` finds it. Whoever depends on the kind of label asks the task. Legend: N rows, C classes.

Multiclass: the target is the class index, [N] int64; classes compete in a softmax. Multilabel: the target is multi-hot,
[N, C] int8; each class is a question by itself, answered by a sigmoid. A target of -1 is no label in both, which is
something else than a label of no class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:  # whoever has tensors has loaded it; manifests and commands that have none start without
    import torch

__all__ = ["MULTICLASS", "MULTILABEL", "Label", "Multiclass", "Multilabel", "Task", "TaskName", "task_of"]

TaskName = Literal["multiclass", "multilabel"]
Label = str | tuple[str, ...]
"""A class; or classes, sorted and distinct, maybe none."""

_LEAST_DOUBT = 1e-6
"""The focal loss keeps away from 0, where the root of a small gamma has no gradient."""

_Array = TypeVar("_Array", "torch.Tensor", NDArray[Any])


class Task(ABC):
    """One kind of label.

    Attributes:
        name: in manifests and bundles.
        label_type: Arrow type of a dataset's label column.
    """

    name: ClassVar[TaskName]
    label_type: ClassVar[pa.DataType]

    def __reduce__(self) -> tuple[Any, tuple[TaskName]]:
        """There is one object of each kind, in every process."""
        return task_of, (self.name,)

    @abstractmethod
    def classes_of(self, label: Any) -> Sequence[str]:
        """The classes that a label names."""

    @abstractmethod
    def targets(self, column: pa.Array | pa.ChunkedArray, classes: pa.Array) -> NDArray[Any]:
        """Targets of N labels; -1 where there is none, or one that the C classes do not know."""

    @abstractmethod
    def no_targets(self, num_classes: int) -> NDArray[Any]:
        """The targets of no rows."""

    @abstractmethod
    def labelled(self, targets: _Array) -> _Array:
        """[N] bool, whether a row has a label."""

    @abstractmethod
    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """[..., C] of logits [..., C]."""

    @abstractmethod
    def losses(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        outcome_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Negative log-likelihood of each row's label in nats, [N], with label smoothing, or its focal form.

        The focal loss (Lin et al. 2017, arXiv:1708.02002) multiplies each term -log p by (1 - p)^gamma.

        Args:
            logits: [N, C].
            targets: those of the rows; the value does not matter where there is no label.
            label_smoothing: share of the target spread evenly over all outcomes, in [0, 1).
            focal_gamma: at least 0; 0 is the cross-entropy.
            outcome_weights: [2, C] of multilabel, what not having and having each class counts.
        """

    @abstractmethod
    def truth_probability(
        self, logits: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean probability [N, M] that logits [N, M, C] give to the true classes, and the rows [N] that have some."""

    @abstractmethod
    def choices(self, logits: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The same as choices of one among K: logits [n, K] and the index chosen [n]."""

    @abstractmethod
    def claims(
        self, probabilities: NDArray[Any], chosen: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """How sure the model is of what it says in each of n choices, in [0, 1], and whether that is so."""


class Multiclass(Task):
    """Every record is of one class."""

    name = "multiclass"
    label_type = pa.string()

    def classes_of(self, label: Any) -> Sequence[str]:
        """The class."""
        return (label,)

    def targets(self, column: pa.Array | pa.ChunkedArray, classes: pa.Array) -> NDArray[Any]:
        """[N] int64 class index."""
        found: NDArray[Any] = pc.index_in(column, classes).fill_null(-1).to_numpy().astype(np.int64)
        return found

    def no_targets(self, num_classes: int) -> NDArray[Any]:
        """[0] int64."""
        return np.zeros(0, dtype=np.int64)

    def labelled(self, targets: _Array) -> _Array:
        """Whether the index is one."""
        return targets >= 0

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Softmax: a distribution over the classes."""
        return logits.softmax(dim=-1)

    def losses(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        outcome_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Cross-entropy; classes are weighed by the weights of their rows."""
        from torch.nn import functional as F

        classes = targets.clamp(min=0)
        if not focal_gamma:
            return F.cross_entropy(logits.float(), classes, reduction="none", label_smoothing=label_smoothing)
        log_p = logits.float().log_softmax(dim=1)
        terms = -log_p * (-log_p.expm1()).clamp(min=_LEAST_DOUBT).pow(focal_gamma)
        losses = (1 - label_smoothing) * terms.gather(1, classes[:, None])[:, 0]
        return losses + label_smoothing * terms.mean(dim=1)

    def truth_probability(
        self, logits: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the true class; every labelled row has one."""
        classes = targets.clamp(min=0)[:, None, None].expand(-1, logits.shape[1], 1)
        return logits.float().softmax(dim=-1).gather(-1, classes).squeeze(-1), targets >= 0

    def choices(self, logits: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """A choice a row, among the classes."""
        return logits, targets

    def claims(
        self, probabilities: NDArray[Any], chosen: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """That the class is the most probable one."""
        return probabilities.max(axis=1), probabilities.argmax(axis=1) == chosen


class Multilabel(Task):
    """Every record is of any number of classes, none included."""

    name = "multilabel"
    label_type = pa.list_(pa.field("element", pa.string()))

    def classes_of(self, label: Any) -> Sequence[str]:
        """The classes; none for a label that is not there."""
        return tuple(label or ())

    def targets(self, column: pa.Array | pa.ChunkedArray, classes: pa.Array) -> NDArray[Any]:
        """[N, C] int8, 1 for every class that the label names."""
        labels = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        lengths = pc.list_value_length(labels).fill_null(0).to_numpy(zero_copy_only=False)
        found = (
            pc.index_in(labels.flatten().cast(classes.type), classes)
            .fill_null(-1)
            .to_numpy(zero_copy_only=False)
        )
        rows = np.repeat(np.arange(len(labels)), lengths)
        hot = np.zeros((len(labels), len(classes)), dtype=np.int8)
        hot[rows[found >= 0], found[found >= 0]] = 1
        hot[rows[found < 0]] = -1
        hot[pc.is_null(labels).to_numpy(zero_copy_only=False)] = -1
        return hot

    def no_targets(self, num_classes: int) -> NDArray[Any]:
        """[0, C] int8."""
        return np.zeros((0, num_classes), dtype=np.int8)

    def labelled(self, targets: _Array) -> _Array:
        """Whether the first class is known to be there or not: of one row all are, or none."""
        return targets[:, 0] >= 0

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Sigmoid: of each class by itself."""
        return logits.sigmoid()

    def losses(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        outcome_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Binary cross-entropy, summed over the classes."""
        from torch.nn import functional as F

        has = targets.clamp(min=0).float() * (1 - label_smoothing) + label_smoothing / 2
        log_p, log_q = F.logsigmoid(logits.float()), F.logsigmoid(-logits.float())
        with_it, without = -log_p, -log_q
        if focal_gamma:
            with_it = with_it * log_q.exp().clamp(min=_LEAST_DOUBT).pow(focal_gamma)
            without = without * log_p.exp().clamp(min=_LEAST_DOUBT).pow(focal_gamma)
        if outcome_weights is not None:
            without, with_it = without * outcome_weights[0], with_it * outcome_weights[1]
        return (has * with_it + (1 - has) * without).sum(dim=1)

    def truth_probability(
        self, logits: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Over the classes that a row has; rows of none say nothing."""
        has = targets.clamp(min=0).float()
        count = has.sum(dim=1)
        total = (logits.float().sigmoid() * has[:, None]).sum(dim=-1)
        return total / count.clamp(min=1)[:, None], count > 0

    def choices(self, logits: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """C choices a row between not having (0) and having (1) each class: a sigmoid is the softmax of (0, logit)."""
        pairs = np.stack([np.zeros_like(logits), logits], axis=-1).reshape(-1, 2)
        return pairs, targets.reshape(-1).astype(np.int64)

    def claims(
        self, probabilities: NDArray[Any], chosen: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """That the row has the class."""
        return probabilities[:, 1], chosen == 1


MULTICLASS, MULTILABEL = Multiclass(), Multilabel()


def task_of(name: TaskName) -> Task:
    """The task of a name."""
    return MULTICLASS if name == MULTICLASS.name else MULTILABEL
