"""Read parts of an object in an object store, one request for each read."""

import os
from typing import Any, cast

import fsspec


class RangeFile:
    """An object that is read in ranges, without a cache.

    fsspec's own files ask the store for the size of the object before their first read, and their
    caches would fetch tens of megabytes past each row group.
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

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes, or all if it is negative."""
        start = self._position
        stop = self._size if size is None or size < 0 else min(start + size, self._size)
        if start >= stop:
            return b""
        data: Any = self._fs.cat_file(self._path, start=start, end=stop, **self._limit)
        self._position += len(data)
        return cast("bytes", data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte without fetching anything."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position
