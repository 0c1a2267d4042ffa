"""The exception tree.

    LlavaMedError
    ├── ConfigError       a setting breaks a rule               exit code 2
    ├── DataError         a dataset is unusable                 exit code 1
    │   └── SampleError     one sample is unusable: quarantined, not raised to the user
    ├── StorageError      a place cannot be read or written
    │   └── DamagedFileError   what lies there is not what was written
    ├── CheckpointError   a checkpoint or export is missing, partial or of another run
    ├── LeaseError        another attempt holds the folder or has taken it over
    ├── TrainingError     training cannot go on (a loss that is not finite, a dead worker)
    ├── TrackingError     the MLflow server refuses us
    ├── EndpointError     a language model cannot be asked, or costs more than it may
    └── InterruptError    a signal ended the command            exit code 128 + signal

Every message has one grammar: ``key=value: the rule it breaks, with the numbers; what to do``.
Mistakes of the programmer stay built-in exceptions.
"""


class LlavaMedError(Exception):
    """Base of every error a user can cause or cure."""

    exit_code = 1


class ConfigError(LlavaMedError):
    """A setting breaks a rule; found before any machine starts."""

    exit_code = 2


class DataError(LlavaMedError):
    """A dataset is absent, incomplete, or has too many unusable samples."""


class SampleError(DataError):
    """One sample is unusable. `reason` is a word to count by, `detail` names the fact."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class StorageError(LlavaMedError):
    """A file or folder cannot be reached, read or written."""


class DamagedFileError(StorageError):
    """A file, read more than once, is not what it should be. `reason` is the reader's own word."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, reason)
        self.message = message
        self.reason = reason

    def __str__(self) -> str:
        return self.message


class CheckpointError(LlavaMedError):
    """A checkpoint or an export is missing, partial, or does not fit this run."""


class LeaseError(LlavaMedError):
    """Another attempt holds a folder, or has taken it over."""


class TrainingError(LlavaMedError):
    """A stage cannot go on."""


class TrackingError(LlavaMedError):
    """MLflow cannot be reached or refuses the request."""


class EndpointError(LlavaMedError):
    """An OpenAI-compatible endpoint refuses us, is down, or would pass the budget."""


class InterruptError(LlavaMedError):
    """Ctrl-C or SIGTERM ended the command; what was finished stays finished."""

    def __init__(self, signal_number: int, signal_name: str) -> None:
        super().__init__(signal_number, signal_name)
        self.exit_code = 128 + signal_number
        self._name = signal_name

    def __str__(self) -> str:
        return (
            f"signal={self._name}: the command was interrupted; start the same command again to "
            "go on from what is finished"
        )
