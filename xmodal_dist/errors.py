"""Every error the project raises on purpose, and the exit code the command line gives it.

    XmodalError                     1   the job failed
    ├── UsageError                  2   a setting, argument or path is wrong: the message says what to change
    ├── DivergedError               1   the loss of a training run is no finite number any more
    ├── DataError                  65   the data cannot be used as asked
    │   ├── DecodeError            65   one value of one record cannot be decoded: carries a reason code
    │   └── BudgetExceededError    65   more records were rejected than the settings allow
    ├── CheckpointError            66   a checkpoint or bundle is missing, damaged or of another version
    ├── VerificationError          70   a check of finished output failed
    ├── StorageError               74   reading or writing storage failed
    ├── RunAgainError              75   the job stopped; the same command continues it
    │   └── DecoderDiedError       75   a process that decoded for a worker died every time
    ├── AuthenticationError        77   a cluster refused us, or would accept anyone
    └── SpecDiffersError           78   the settings differ from those of the run being resumed

No class has an ``__init__`` of its own, so each survives pickling between processes.
"""

from __future__ import annotations

__all__ = [
    "AuthenticationError",
    "BudgetExceededError",
    "CheckpointError",
    "DataError",
    "DecodeError",
    "DecoderDiedError",
    "DivergedError",
    "RunAgainError",
    "SpecDiffersError",
    "StorageError",
    "UsageError",
    "VerificationError",
    "XmodalError",
]


class XmodalError(Exception):
    """The job failed; base of every error raised on purpose."""

    exit_code = 1


class UsageError(XmodalError):
    """A setting, argument or path is wrong."""

    exit_code = 2


class DivergedError(XmodalError):
    """The loss of a training run is no finite number any more."""


class DataError(XmodalError):
    """The data cannot be used as asked."""

    exit_code = 65


class DecodeError(DataError):
    """One value cannot be decoded: raise as ``DecodeError(reason_code, message)``.

    Reason codes are the closed set in :data:`xmodal_dist.dataset.quarantine.REASON_CODES`.
    """

    @property
    def reason(self) -> str:
        """Reason code, for example ``media_truncated``."""
        return str(self.args[0])

    @property
    def detail(self) -> str:
        """What was wrong, in words, without payload."""
        return str(self.args[1]) if len(self.args) > 1 else ""

    def __str__(self) -> str:
        """Reason and detail in one line."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class BudgetExceededError(DataError):
    """More records were rejected than the settings allow."""


class CheckpointError(XmodalError):
    """A checkpoint or bundle is missing, damaged or of another version."""

    exit_code = 66


class VerificationError(XmodalError):
    """A check of finished output failed."""

    exit_code = 70


class StorageError(XmodalError):
    """Reading or writing storage failed."""

    exit_code = 74


class RunAgainError(XmodalError):
    """The job stopped before its end; the same command continues it."""

    exit_code = 75


class DecoderDiedError(RunAgainError):
    """A process that decoded for a worker died, and died again whenever it was tried anew."""


class AuthenticationError(XmodalError):
    """A cluster refused us, or would accept anyone."""

    exit_code = 77


class SpecDiffersError(XmodalError):
    """The settings differ from those of the run being resumed."""

    exit_code = 78
