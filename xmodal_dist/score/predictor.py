"""The model on its device: how it computes and how many records it takes at once is found by measuring, once a worker.

What a record is told does not depend on the records beside it, up to rounding. Running out of memory costs no record:
a batch that does not fit is cut in two and tried again.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from xmodal_dist.batch import Batch, Records
from xmodal_dist.bundle import Bundle, load_bundle, subsets
from xmodal_dist.errors import CheckpointError
from xmodal_dist.pipeline.decode import decode_table, decoded_row_bytes
from xmodal_dist.score.decoder import records_of
from xmodal_dist.score.outputs import (
    COALITIONS,
    EMBEDDING,
    FEATURES,
    LOGITS,
    PROBABILITIES,
    SUBSET_PREFIX,
)
from xmodal_dist.score.settings import ScoreSettings
from xmodal_dist.shapley import coalition_masks, coalition_values

__all__ = ["BatchSize", "Predicted", "Predictor"]

_READ_ROWS = 64
"""Fewest records to read and decode at once; the model may take fewer."""
_READ_BYTES = 32 << 20
"""Most bytes of decoded records at once: several such batches wait in memory."""
_FIRST_ROWS, _MOST_CPU_ROWS, _MOST_GPU_ROWS = 16, 256, 4096
_COMPILING_PAYS_S = 60.0
"""Seconds in the model before compiling it is tried, which may take as long: so it at most doubles a run's time."""
_MEASURED = 5
_MIN_GAIN = 1.1
_TOLERANCE = 0.01
_MAX_MEMORY = 0.8

_Piece = dict[str, torch.Tensor]


class Predicted(NamedTuple):
    """What the model says of a batch.

    Attributes:
        rows: [n] int64, the rows of the batch that got predictions, ascending.
        values: by name of the output, float32 [n, ...].
        too_large: [m] int64, those for which memory does not suffice even alone.
    """

    rows: NDArray[np.int64]
    values: dict[str, NDArray[np.float32]]
    too_large: NDArray[np.int64]


class BatchSize:
    """Records that the model is given at once: doubles while the rate grows by 10 %, falls back when it no longer does.

    Args:
        rows: fixed from the start; None finds the number.
        most: never more than these.
    """

    def __init__(self, rows: int | None, most: int) -> None:
        self.rows = rows or min(_FIRST_ROWS, most)
        self.settled = rows is not None
        self._most = most
        self._seconds: list[float] = []
        self._rate = 0.0

    def note(self, rows: int, seconds: float) -> None:
        """What a batch took; only those of the present size tell something."""
        if self.settled or rows != self.rows:
            return
        self._seconds.append(seconds)
        if len(self._seconds) < _MEASURED:
            return
        rate = rows / max(min(self._seconds), 1e-9)
        self._seconds.clear()
        if rate < self._rate * _MIN_GAIN:
            self.rows //= 2
            self.settled = True
        elif 2 * self.rows > self._most or _memory_is_short():
            self.settled = True
        else:
            self._rate = rate
            self.rows *= 2

    def halve(self) -> None:
        """Memory did not suffice."""
        self.rows = max(1, self.rows // 2)
        self.settled = True


class Predictor:
    """Predicts with one bundle on one device, for any number of threads, a batch at a time.

    Args:
        bundle: the model, already on the device; its weights' memory is laid out anew.
        device: where it is.
        settings: which outputs, precision and batch size.
    """

    def __init__(self, bundle: Bundle, device: torch.device, settings: ScoreSettings) -> None:
        self.bundle, self.device = bundle, device
        self._settings = settings
        self._most_read_rows = max(1, _READ_BYTES // decoded_row_bytes(bundle.specs))
        self._lock = threading.Lock()
        self._masks = subsets(bundle.specs, nothing=True) if settings.evaluation else {}
        self._coalitions = coalition_masks(len(bundle.specs)) if settings.contributions else {}
        self._is_gpu = device.type == "cuda"
        self._size = BatchSize(settings.batch_rows, _MOST_GPU_ROWS if self._is_gpu else _MOST_CPU_ROWS)
        self._half = settings.precision == "bfloat16"
        self._precision_is_chosen = not self._is_gpu
        self._compiling_is_chosen = not self._is_gpu or settings.compile == "never"
        self._predicting_s = 0.0
        self._copies = torch.cuda.Stream(device) if self._is_gpu else None  # type: ignore[no-untyped-call]
        bundle.model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @staticmethod
    def load(path: str, fingerprint: str, settings: ScoreSettings) -> Predictor:
        """A bundle on this process's accelerator, or its CPU with ``settings.threads`` threads, by default one.

        Raises:
            CheckpointError: not a bundle, or not the one with this fingerprint.
        """
        torch.set_num_threads(settings.threads or 1)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bundle = load_bundle(path, device)
        if bundle.fingerprint != fingerprint:
            raise CheckpointError(f"{path} was replaced while the run was going on; score with it anew")
        return Predictor(bundle, device, settings)

    @property
    def read_rows(self) -> int:
        """How many records to read and decode at once; may grow while the batch size is being found."""
        return self._settings.batch_rows or min(max(_READ_ROWS, self._size.rows), self._most_read_rows)

    def warm_up(self) -> None:
        """Predict records of which everything is missing, so that no libraries are set up while data waits."""
        names = [name for spec in self.bundle.specs for name in spec.columns]
        table = pa.table({name: pa.nulls(2) for name in names})
        decoded = decode_table(table, self.bundle.specs, None)
        batch = self.stage(records_of(decoded.fields, decoded.present))
        self._to_host([self._forward(batch)])

    def stage(self, records: Records) -> Batch:
        """Records on the device. On a GPU pinned first and copied by a stream of its own, while the model computes.

        Where the device has no memory left they stay here, and :meth:`predict` moves them in parts.
        """
        if self._copies is None:
            return records.to_batch().to(self.device)
        try:
            with torch.cuda.stream(self._copies):
                staged = records.to_batch(_pinned).to(self.device)
            self._copies.synchronize()
        except torch.OutOfMemoryError:
            return records.to_batch()
        return staged

    def predict(self, batch: Batch) -> Predicted:
        """Predictions of a batch of at least one record, in parts that the model can take."""
        with self._lock, torch.inference_mode():
            return self._predict(batch)

    def _predict(self, batch: Batch) -> Predicted:
        began_s = time.perf_counter()
        if not self._precision_is_chosen:
            self._probe_precision(batch.slice(0, self._size.rows))
        if not self._compiling_is_chosen and self._predicting_s > _COMPILING_PAYS_S:
            self._probe_compiling(batch.slice(0, self._size.rows))
        pieces: list[_Piece] = []
        too_large: list[int] = []
        start = 0
        while start < len(batch):
            stop = min(start + self._size.rows, len(batch))
            began = self._clock()
            found = self._try(batch.slice(start, stop))
            if found is None:
                before = len(too_large)
                pieces += self._halves(batch, start, stop, too_large)
                if len(too_large) == before:  # not the fault of a single record
                    self._size.halve()
            else:
                pieces.append(found)
                self._size.note(stop - start, self._clock() - began)
            start = stop
        failed = np.array(too_large, dtype=np.int64)
        rows = np.setdiff1d(np.arange(len(batch), dtype=np.int64), failed)
        values = self._to_host(pieces)
        self._predicting_s += time.perf_counter() - began_s
        return Predicted(rows, values, failed)

    def _try(self, batch: Batch) -> _Piece | None:
        """The predictions; None where memory does not suffice."""
        try:
            return self._forward(batch)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        if self._is_gpu:
            torch.cuda.empty_cache()
        return None

    def _halves(self, batch: Batch, start: int, stop: int, too_large: list[int]) -> Iterator[_Piece]:
        """Predictions of rows that did not fit together; those that do not fit even alone are put in ``too_large``."""
        if stop - start == 1:
            too_large.append(start)
            return
        middle = (start + stop) // 2
        for first, last in ((start, middle), (middle, stop)):
            found = self._try(batch.slice(first, last))
            if found is None:
                yield from self._halves(batch, first, last, too_large)
            else:
                yield found

    def _forward(self, batch: Batch) -> _Piece:
        """The outputs that are asked for, by name, on the device."""
        asked = self._settings
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            said = self.bundle.predict(batch.to(self.device), self._masks | self._coalitions)
        found = {PROBABILITIES: said.probabilities[""]}
        if asked.logits:
            found[LOGITS] = said.logits[""]
        if asked.embedding:
            found[EMBEDDING] = said.embedding
        if asked.embeddings:
            found[FEATURES] = said.features
        if asked.contributions:
            found[COALITIONS] = coalition_values(said.probabilities)
        return found | {SUBSET_PREFIX + name: said.probabilities[name] for name in self._masks}

    def _to_host(self, pieces: list[_Piece]) -> dict[str, NDArray[np.float32]]:
        names = pieces[0] if pieces else ()
        return {name: torch.cat([piece[name] for piece in pieces]).cpu().numpy() for name in names}

    def _clock(self) -> float:
        """Seconds: of this thread on a CPU, where other threads decode meanwhile; on a GPU until it is idle."""
        if not self._is_gpu:
            return time.thread_time()
        if not self._size.settled:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _probe_precision(self, batch: Batch) -> None:
        """Choose the precision: what is faster on these records and says the same of them."""
        self._precision_is_chosen = True
        if self._settings.precision != "auto":
            return
        reference = self._measure(batch)
        self._half = True
        self._half = reference is not None and _is_better(self._measure(batch), reference)

    def _probe_compiling(self, batch: Batch) -> None:
        """Compile the encoders, if that is faster on these records and says the same of them."""
        self._compiling_is_chosen = True
        reference = self._measure(batch)
        plain = self.bundle
        compiled = copy.deepcopy(plain.model)
        compiled.compile_encoders()
        self.bundle = replace(plain, model=compiled)
        if reference is None or not _is_better(self._measure(batch), reference):
            self.bundle = plain

    def _measure(self, batch: Batch) -> tuple[float, torch.Tensor] | None:
        """Seconds of a warm pass and its probabilities; None where it cannot be done, as without a compiler."""
        try:
            probabilities = self._forward(batch)[PROBABILITIES]
            seconds = []
            for _ in range(_MEASURED):
                torch.cuda.synchronize(self.device)
                began = time.perf_counter()
                self._forward(batch)
                torch.cuda.synchronize(self.device)
                seconds.append(time.perf_counter() - began)
        except Exception:  # the compiler and its back ends have errors of their own
            return None
        return min(seconds), probabilities


def _pinned(array: NDArray[np.generic]) -> torch.Tensor:
    """A copy in memory that a GPU reads by itself."""
    kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
    copied = torch.empty(array.shape, dtype=kind, pin_memory=True)
    copied.numpy()[...] = array
    return copied


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ("out of memory", "can't allocate memory"))


def _memory_is_short() -> bool:
    """Whether a batch of twice the size would take more than 80 % of the GPU's memory."""
    if not torch.cuda.is_available():
        return False
    total = torch.cuda.mem_get_info()[1]
    return bool(2 * torch.cuda.max_memory_allocated() > _MAX_MEMORY * total)


def _is_better(found: tuple[float, torch.Tensor] | None, reference: tuple[float, torch.Tensor]) -> bool:
    if found is None or found[0] * _MIN_GAIN > reference[0]:
        return False
    return bool((found[1] - reference[1]).abs().max() <= _TOLERANCE)
