"""Try an operation again if its failure may pass, and explain in one sentence if it does not.

The clients of object stores try a request a few times within seconds. They do not cover a server
that starts again, errors that they take for final, such as a checksum that differs, or a file
system on the network. This module covers them by one rule, which is applied to whole operations.
"""

import errno
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential_jitter,
)

from llavamed.errors import DamagedFileError, StorageError

ATTEMPTS = 6
"""Number of times an operation is tried."""
LAST_ATTEMPT_SECONDS = 300.0
"""Time after the first attempt at which no other one begins."""
WAIT = wait_exponential_jitter(initial=1, max=30, jitter=1)
"""Wait 1, 2, 4, 8 and 16 seconds between attempts, and up to one more, so that workers spread out.

With the clients' own tries, a server may be away for about a minute.
"""

_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "gcsfs"}
_MAY_PASS = {
    *(errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}
"""s3fs says EREMOTEIO for an internal error of the server, EBUSY for one that asks to slow down,
and EIO for what it does not know, such as a bad gateway."""

_MAY_PASS_OF_S3 = {
    *("HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseParserError"),
    *("ChecksumError", "FlexibleChecksumError", "CredentialRetrievalError"),
}
"""botocore's, by name and not by import, because few commands need S3; its other errors concern
settings and credentials."""

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class Place(Protocol):
    """The object of an operation: it prints as its name, and has a number of attempts."""

    @property
    def attempts(self) -> int:
        """Number of times to try an operation."""

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""


def with_retries(place: Place, verb: str, work: Callable[[], _T]) -> _T:
    """Do `work`, and do it again while it fails for a reason that may pass. Log each failure.

    A file that is read damaged is read again at once, because bytes may change in the network. A
    file of a file system of this machine is not.

    Args:
        verb: The operation, for messages.
        work: The operation, which starts at its beginning each time.

    Raises:
        FileNotFoundError: The file to read does not exist.
        StorageError: It fails for another reason, or at the last attempt too.
    """

    def may_pass(error: BaseException) -> bool:
        return _may_pass(error) and not (isinstance(error, DamagedFileError) and place.is_local)

    def wait(state: RetryCallState) -> float:
        return 0.0 if isinstance(_error(state), DamagedFileError) else WAIT(state)

    def warn(state: RetryCallState) -> None:
        error = _error(state)
        reason = " ".join(str(error).split())
        logger.warning(
            "%s: cannot %s it: %s: %s; attempt %d of %d failed, the next comes in %.1f s",
            *(place, verb, type(error).__name__, reason),
            *(state.attempt_number, place.attempts, state.upcoming_sleep),
        )

    retrying = Retrying(
        retry=retry_if_exception(may_pass),
        stop=stop_after_attempt(place.attempts) | stop_after_delay(LAST_ATTEMPT_SECONDS),
        wait=wait,
        before_sleep=warn,
        reraise=True,
    )
    with _readable_errors(place, verb):
        return retrying(work)


class RetryingFile(io.RawIOBase):
    """A file for reading, each of whose reads is tried again from where it began."""

    def __init__(self, place: Place, raw: Any) -> None:
        self._place = place
        self._raw = raw

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, or all if it is negative. Raises: StorageError."""
        start = self.tell()

        def read() -> bytes:
            self._raw.seek(start)
            return cast("bytes", self._raw.read(size))

        return with_retries(self._place, "read", read)

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` up to the end of the file. Raises: StorageError."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a byte without fetching anything."""
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        """Return the position of the next byte."""
        return int(self._raw.tell())

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


@contextmanager
def _readable_errors(place: Place, verb: str) -> Iterator[None]:
    """Turn the errors of all filesystems into one sentence.

    A FileNotFoundError of a file to read stays as it is.
    """
    try:
        yield
    except Exception as error:
        is_missing = isinstance(error, FileNotFoundError)
        if is_missing and "bucket does not exist" in str(error).lower():
            raise StorageError(f"{place}: cannot {verb} it: {error}; create the bucket") from error
        is_of_storage = isinstance(error, OSError) or _client(error) in _CLIENTS
        if (is_missing and verb != "write") or not is_of_storage:
            raise
        why = f"{type(error).__name__}: {error}"
        number = getattr(error, "errno", None)
        if number in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageError(
                f"{place}: cannot {verb} it: {why}; free some space, or name another place"
            ) from error
        if number in {errno.EROFS, errno.EISDIR}:
            wanted = "a place that can be written" if number == errno.EROFS else "a file"
            raise StorageError(f"{place}: cannot {verb} it: {why}; name {wanted}") from error
        raise StorageError(
            f"{place}: cannot {verb} it: {why}; check that the place exists, is reachable and that "
            "the credentials in the environment allow it"
        ) from error


def _may_pass(error: BaseException) -> bool:
    """Return whether the same operation may succeed later without anybody doing something."""
    if isinstance(error, ConnectionError | TimeoutError | DamagedFileError):
        return True
    client = _client(error)
    if client == "aiohttp":
        return True
    if client in {"botocore", "aiobotocore"}:
        return any(base.__name__ in _MAY_PASS_OF_S3 for base in type(error).__mro__)
    return isinstance(error, OSError) and error.errno in _MAY_PASS


def _client(error: BaseException) -> str:
    """Return the package that has raised an error."""
    return type(error).__module__.split(".")[0]


def _error(state: RetryCallState) -> BaseException:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    return error
