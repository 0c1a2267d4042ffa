"""Read parts of an object in an object store, one request for each read."""

import os
from contextlib import closing
from typing import Any, cast
from weakref import WeakKeyDictionary

import fsspec

_KNOWN = {"anon", "config_kwargs", "endpoint_url", "use_listings_cache"}
"""Arguments of S3 filesystems that `_connect` passes on. A config of fsspec's own may add others,
and then s3fs does all."""
_clients: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""For each client of s3fs, botocore's client with the same settings."""
# Processes that share connections would read each other's answers.
os.register_at_fork(after_in_child=_clients.clear)


class RangeFile:
    """An object that is read in ranges, without a cache.

    fsspec's own files ask the store for the size of the object before their first read, and their
    caches would fetch tens of megabytes past each row group.

    Ranges of S3 are fetched by botocore, on which s3fs is built: it finds credentials, endpoint,
    proxy and certificates in the same way, and takes a third of the CPU time, because the thread
    that wants the bytes reads them itself. What fails at the first request is left to s3fs, which
    tries again and says why.
    """

    def __init__(
        self, fs: fsspec.AbstractFileSystem, path: str, size: int | None, limit: dict[str, float]
    ) -> None:
        """Open an object.

        Args:
            fs: Its filesystem.
            path: Its path there.
            size: Its size in bytes, or None to ask the store for it.
            limit: Arguments that limit the time of a request.
        """
        self._fs, self._path, self._limit = fs, path, limit
        self._size = int(fs.info(path, **limit)["size"]) if size is None else size
        self._position = 0
        # botocore cannot be told when a request must have ended.
        self._is_direct = (
            "s3" in fs.protocol and not limit and _KNOWN.issuperset(fs.storage_options)
        )

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes, or all if it is negative."""
        start = self._position
        stop = self._size if size is None or size < 0 else min(start + size, self._size)
        if start >= stop:
            return b""
        data: Any = self._fetch(start, stop) if self._is_direct else None
        if data is None:
            data = self._fs.cat_file(self._path, start=start, end=stop, **self._limit)
        self._position += len(data)
        return cast("bytes", data)

    def _fetch(self, start: int, stop: int) -> bytes | None:
        """Return a range that botocore has fetched, or None if the request fails."""
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        connected = self._fs.s3
        client = _clients.get(connected) or _clients.setdefault(connected, _connect(self._fs))
        bucket, key, _ = self._fs.split_path(self._path)
        try:
            answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}")
            with closing(answer["Body"]) as body:
                return cast("bytes", body.read())
        except (BotoCoreError, ClientError, HTTPError, OSError):
            return None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte without fetching anything."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position


def _connect(fs: Any) -> Any:
    """Return botocore's client with the settings of an S3 filesystem; it tries a request once."""
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.session import Session

    settings = {"connect_timeout": fs.connect_timeout, "read_timeout": fs.read_timeout}
    settings |= fs.config_kwargs | {"retries": {"total_max_attempts": 1}}
    if fs.anon:
        settings["signature_version"] = UNSIGNED
    session = Session()
    # Shared, because the descriptions of S3's operations take 14 MB and 0.1 s.
    session.register_component("data_loader", fs.session.get_component("data_loader"))
    return session.create_client("s3", endpoint_url=fs.endpoint_url, config=Config(**settings))
