"""Trying again what may pass, and saying in one sentence what does not.

The clients of object stores try a request a few times within seconds. That leaves what outlasts it
(a server that starts again), what they take for final (a checksum that differs), and what no client
sees (a file system on the network). One rule for all of it stands here, around whole operations.
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
"""Times an operation is tried."""
LAST_ATTEMPT_SECONDS = 300.0
"""No attempt begins later than this after the first."""
WAIT = wait_exponential_jitter(initial=1, max=30, jitter=1)
"""Between attempts: 1, 2, 4, 8, 16 seconds, and up to one more, so that workers come one by one.

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
"""botocore's, by name and not by import, for few commands need S3; its other errors are of settings
and credentials."""

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class Place(Protocol):
    """What an operation is done to: prints as its name, and knows how often to try."""

    @property
    def attempts(self) -> int:
        """How often to try."""


def with_retries(place: Place, verb: str, work: Callable[[], _T]) -> _T:
    """Do `work`, and again while it fails by what may pass; each failure is a line of warning.

    What is read damaged is read again at once, for bytes also change on their way.

    Args:
        place: What it is done to.
        verb: What is done, for messages.
        work: Done from its beginning each time.

    Raises:
        FileNotFoundError: What should be read is not there.
        StorageError: It fails by what does not pass, or at the last attempt too.
    """

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
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(place.attempts) | stop_after_delay(LAST_ATTEMPT_SECONDS),
        wait=wait,
        before_sleep=warn,
        reraise=True,
    )
    with _readable_errors(place, verb):
        return retrying(work)


class RetryingFile(io.RawIOBase):
    """A file to read, of which each read is tried again from where it began."""

    def __init__(self, place: Place, raw: Any) -> None:
        self._place = place
        self._raw = raw

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, all when negative. Raises: StorageError."""
        start = self.tell()

        def read() -> bytes:
            self._raw.seek(start)
            return cast("bytes", self._raw.read(size))

        return with_retries(self._place, "read", read)

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` as far as the file goes. Raises: StorageError."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a byte, which fetches nothing."""
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        """The byte that is read next."""
        return int(self._raw.tell())

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True


@contextmanager
def _readable_errors(place: Place, verb: str) -> Iterator[None]:
    """Turn the many errors of the many filesystems into one sentence.

    A file that is missing where it should be read stays a FileNotFoundError.
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
        raise StorageError(
            f"{place}: cannot {verb} it: {type(error).__name__}: {error}; check that the place "
            "exists, is reachable and that the credentials in the environment allow it"
        ) from error


def _may_pass(error: BaseException) -> bool:
    """Whether the same may succeed later; not where it waits for somebody to mend something."""
    if isinstance(error, ConnectionError | TimeoutError | DamagedFileError):
        return True
    client = _client(error)
    if client == "aiohttp":
        return True
    if client in {"botocore", "aiobotocore"}:
        return any(base.__name__ in _MAY_PASS_OF_S3 for base in type(error).__mro__)
    return isinstance(error, OSError) and error.errno in _MAY_PASS


def _client(error: BaseException) -> str:
    """The package whose error it is."""
    return type(error).__module__.split(".")[0]


def _error(state: RetryCallState) -> BaseException:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    return error
