"""Define the exception tree.

    LlavaMedError
    ├── ConfigError       a setting breaks a rule               exit code 2
    ├── DataError         a dataset is unusable                 exit code 1
    │   └── SampleError     one sample is unusable; it is quarantined, not shown to the user
    ├── StorageError      a file or folder cannot be read or written
    │   └── DamagedFileError   a file is not as it was written
    ├── CheckpointError   a checkpoint or export is missing, partial or of another run
    │   └── DamagedCheckpointError   it is complete and not as it was written; resuming skips it
    ├── LeaseError        another attempt holds the folder or has taken it over
    ├── TrainingError     training cannot continue (a loss is not finite, a worker died)
    ├── TrackingError     the MLflow server refuses a request
    ├── EndpointError     a language model cannot be reached, or costs more than allowed
    ├── RequestError      a question to a model breaks a rule, or cannot be answered now
    ├── LogitsError       a model gives logits of which none is the largest
    ├── ClusterError      Kubernetes refuses a request or cannot be reached
    │   ├── NotFoundError      there is no object of that name
    │   └── UnreachableError   it does not answer, and may do so later
    ├── GateError         a model breaks the policy             exit code 3
    └── InterruptError    a signal ended the command            exit code 128 + signal

Every message has one grammar: ``key=value: the rule it breaks, with the numbers; what to do``.
Programming errors stay built-in exceptions.
"""

from collections.abc import Sequence
from typing import Any


class LlavaMedError(Exception):
    """Base of every error that a user can cause or fix."""

    exit_code = 1


class ConfigError(LlavaMedError):
    """A setting breaks a rule; this is found before any machine starts."""

    exit_code = 2


class DataError(LlavaMedError):
    """A dataset is absent, incomplete, or has too many unusable samples."""


class SampleError(DataError):
    """One sample is unusable. `reason` is the word that counts it, `detail` states the facts."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class StorageError(LlavaMedError):
    """A file or folder cannot be reached, read or written."""


class DamagedFileError(StorageError):
    """A file is not valid as it was read. `reason` is the message of its reader."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, reason)
        self.message = message
        self.reason = reason

    def __str__(self) -> str:
        return self.message


class CheckpointError(LlavaMedError):
    """A checkpoint or an export is missing, partial, or does not fit this run."""


class DamagedCheckpointError(CheckpointError):
    """A complete checkpoint cannot be read as it was written."""


class LeaseError(LlavaMedError):
    """Another attempt holds a folder, or has taken it over."""


class TrainingError(LlavaMedError):
    """A stage cannot continue."""


class TrackingError(LlavaMedError):
    """MLflow cannot be reached or refuses the request."""


class EndpointError(LlavaMedError):
    """An OpenAI-compatible endpoint refuses us, is down, or would pass the budget."""


class RequestError(LlavaMedError):
    """A question to a model breaks a rule, or cannot be answered now.

    `status` is the HTTP status, `code` the word that programs read, and `param` the part of the
    request that is wrong. `retry_after` is in seconds, or None if another attempt is useless.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int = 400,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.status, self.param, self.retry_after = code, status, param, retry_after


class LogitsError(LlavaMedError):
    """The logits of a model are not finite, so some answers cannot go on. The others can."""

    def __init__(self, message: str, answers: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.answers = answers

    def __reduce__(self) -> tuple[Any, ...]:
        """Send it to another process without the answers, which belong to this one."""
        return type(self), (str(self),)


class ClusterError(LlavaMedError):
    """Kubernetes refuses a request, or does not have what it is asked for."""


class NotFoundError(ClusterError):
    """Kubernetes has no object of that name."""


class UnreachableError(ClusterError):
    """Kubernetes does not answer, which may be temporary."""


class GateError(LlavaMedError):
    """A model does not meet the policy that decides which model is the champion."""

    exit_code = 3


class InterruptError(LlavaMedError):
    """Ctrl-C or SIGTERM ended the command; finished work is kept."""

    def __init__(self, signal_number: int, signal_name: str, outcome: str = "") -> None:
        super().__init__(signal_number, signal_name, outcome)
        self.exit_code = 128 + signal_number
        self._name, self._outcome = signal_name, outcome

    def __str__(self) -> str:
        if self._outcome:
            return f"signal={self._name}: {self._outcome}"
        return (
            f"signal={self._name}: the command was interrupted; start the same command again to "
            "go on from what is finished"
        )
