"""Fetch the files of a bucket: at a pace, with their MD5 checked, and each request counted."""

import hashlib
import time
from collections import Counter
from threading import Lock

from llavamed.errors import DamagedFileError, SampleError, StorageError
from llavamed.llm.pace import Pace
from llavamed.storage.location import Location
from llavamed.storage.retry import with_retries

UNAVAILABLE = "unavailable"
"""Reason for what failed in a way that may pass; the next run tries it again."""


class Fetcher:
    """Reads files below a bucket for any number of threads.

    Attributes:
        counts: `requests`, `bytes`, `fetched`, and failed attempts by their error, such as
            `failed: OSError`.
    """

    def __init__(self, bucket: Location, requests_per_second: float) -> None:
        self.counts: Counter[str] = Counter()
        self._bucket = bucket
        self._pace = Pace(max(1, round(60 * requests_per_second)), None)
        self._lock = Lock()

    def read(self, key: str, md5: str = "") -> bytes:
        """Return the bytes of a file.

        Args:
            key: Its path below the bucket.
            md5: Its hexadecimal MD5; empty where it is not known.

        Raises:
            SampleError: `missing_object`, `forbidden_object`, `md5_mismatch` where every answer
                had other bytes, or `unavailable` where it still fails after all attempts.
        """
        place = self._bucket / key
        try:
            return with_retries(place, "read", lambda: self._attempt(place, md5))
        except FileNotFoundError as error:
            raise SampleError("missing_object", f"{place}: no such object") from error
        except DamagedFileError as error:
            raise SampleError("md5_mismatch", str(error)) from error
        except StorageError as error:
            if isinstance(error.__cause__, PermissionError):
                # S3 also says so for a missing object where listing is not allowed.
                raise SampleError("forbidden_object", f"{place}: access is denied") from error
            raise SampleError(UNAVAILABLE, str(error)) from error

    def uri(self, key: str) -> str:
        """Return the URI of a file."""
        return str(self._bucket / key)

    def _attempt(self, place: Location, md5: str) -> bytes:
        with self._lock:
            wait = self._pace.take(0)
        time.sleep(wait)
        try:
            data: bytes = place.fs.cat_file(place.path)
            if md5 and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
                raise DamagedFileError(f"{place}: {len(data)} bytes with another MD5", "MD5")
        except Exception as error:
            self._count(f"failed: {type(error).__name__}")
            raise
        self._count("fetched", len(data))
        return data

    def _count(self, outcome: str, num_bytes: int = 0) -> None:
        with self._lock:
            self.counts.update({"requests": 1, "bytes": num_bytes, outcome: 1})
