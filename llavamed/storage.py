"""Files and folders at any URI: a local path, `s3://`, `gs://` and whatever fsspec can open.

Credentials and endpoints come from the environment, as each cloud's own tools read them
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...), never from a config. A folder is complete when its
`manifest.json` exists, which is why every writer writes that file last.
"""

import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from llavamed.errors import StorageError

MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
"""Filesystems whose folders are only parts of names, and whose makedirs would make a bucket."""


@dataclass(frozen=True)
class Location:
    """A file or folder: its filesystem and its path there."""

    fs: fsspec.AbstractFileSystem
    path: str

    def __truediv__(self, name: str) -> "Location":
        return Location(self.fs, posixpath.join(self.path, name))

    def __str__(self) -> str:
        return self.path if self.is_local else str(self.fs.unstrip_protocol(self.path))

    def impatient(self) -> "Location":
        """The same place, where an S3 server that does not answer is given up within seconds.

        Any other operation goes on for half a minute, which a long run may need.
        """
        if "s3" not in _protocols(self.fs):
            return self
        few = {"connect_timeout": 2, "retries": {"max_attempts": 1}}
        return Location(type(self.fs)(config_kwargs=few), self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return "file" in _protocols(self.fs)

    def _make_parent(self, path: str) -> None:
        """Make the folder of a file, but never a bucket: its name may be misspelt."""
        if not _BUCKETS.intersection(_protocols(self.fs)):
            self.fs.makedirs(posixpath.dirname(path), exist_ok=True)

    def exists(self) -> bool:
        """Whether a file or folder is there now."""
        self.fs.invalidate_cache()  # another process may have written it
        with readable_errors(self, "look at"):
            return bool(self.fs.exists(self.path))

    def read_bytes(self) -> bytes:
        """The whole file. Raises: FileNotFoundError, StorageError."""
        with readable_errors(self, "read"):
            return cast("bytes", self.fs.cat_file(self.path))

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file or nothing, also when killed half way."""
        with readable_errors(self, "write"):
            self._make_parent(self.path)
            if not self.is_local:
                self.fs.pipe_file(
                    self.path, data
                )  # object stores publish an object when it is whole
                return
            partial = Path(f"{self.path}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
            try:
                partial.write_bytes(data)
                os.replace(partial, self.path)
            finally:
                partial.unlink(missing_ok=True)

    def read_json(self) -> Any:
        """The file as JSON. Raises: FileNotFoundError, StorageError."""
        try:
            return json.loads(self.read_bytes())
        except ValueError as error:
            raise StorageError(f"{self}: is not JSON ({error}); make it again") from error

    def write_json(self, value: Any) -> None:
        """Write `value` as JSON with sorted keys, so that equal values give equal bytes."""
        self.write_bytes((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

    def read_table(self) -> pa.Table:
        """The file as a Parquet table. Raises: FileNotFoundError, StorageError."""
        try:
            with readable_errors(self, "read"):
                return pq.read_table(self.path, filesystem=self.fs)
        except pa.ArrowInvalid as error:
            raise StorageError(f"{self}: is not Parquet ({error}); make it again") from error

    def write_table(self, table: pa.Table, *, row_group_size: int | None = None) -> None:
        """Write the table as Parquet, whole or not at all."""
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            row_group_size=row_group_size,
            compression="zstd",
            write_page_checksum=True,
        )
        self.write_bytes(sink.getvalue().to_pybytes())

    def children(self) -> list[str]:
        """Names of what lies in this folder, sorted; empty when there is no such folder."""
        self.fs.invalidate_cache()
        with readable_errors(self, "list"):
            try:
                found = self.fs.ls(self.path, detail=False)
            except FileNotFoundError:
                return []
        names = (posixpath.basename(path.rstrip("/")) for path in found)
        return sorted(name for name in names if not name.endswith(_PARTIAL))

    def remove(self) -> None:
        """Delete the file, or the folder with all in it; nothing when it is not there."""
        with readable_errors(self, "delete"):
            if self.fs.exists(self.path):
                self.fs.rm(self.path, recursive=True)

    def upload(self, folder: Path) -> None:
        """Copy every file below a local folder into this folder, `manifest.json` last."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for file in sorted(files, key=lambda path: path.name == MANIFEST):
            target = posixpath.join(self.path, file.relative_to(folder).as_posix())
            if file.name == MANIFEST:
                Location(self.fs, target).write_bytes(file.read_bytes())
                continue
            with readable_errors(self, "write"):
                self._make_parent(target)
                self.fs.put_file(str(file), target)

    def download(self, folder: Path) -> Path:
        """A local folder with all of this one: itself when it is local, else a copy in `folder`.

        Raises:
            StorageError: There is no such folder, or it cannot be read.
        """
        if not self.exists():
            raise StorageError(f"{self}: no such folder; check the path")
        if self.is_local:
            return Path(self.path)
        with readable_errors(self, "read"):
            for path in self.fs.find(self.path):
                target = folder / posixpath.relpath(path, self.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                self.fs.get_file(path, str(target))
        return folder


@contextmanager
def readable_errors(location: Location, verb: str) -> Iterator[None]:
    """Turn the many errors of the many filesystems into one sentence.

    A file that is missing where it should be read stays a FileNotFoundError.

    Raises:
        StorageError: Permission denied, no such bucket, unreachable endpoint, disk full, ...
    """
    try:
        yield
    except Exception as error:
        is_missing = isinstance(error, FileNotFoundError)
        if is_missing and "bucket does not exist" in str(error).lower():
            raise StorageError(
                f"{location}: cannot {verb} it: {error}; create the bucket"
            ) from error
        if (is_missing and verb != "write") or not _is_of_storage(error):
            raise
        raise StorageError(
            f"{location}: cannot {verb} it: {type(error).__name__}: {error}; check that the place "
            "exists, is reachable and that the credentials in the environment allow it"
        ) from error


def _is_of_storage(error: Exception) -> bool:
    """An error of the system or of a cloud's client (botocore's, aiohttp's, google's)."""
    origin = type(error).__module__.split(".")[0]
    return isinstance(error, OSError) or origin in {"botocore", "aiobotocore", "aiohttp", "gcsfs"}


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def locate(uri: str) -> Location:
    """The location a URI or path names; a relative path is below the current folder.

    Raises:
        StorageError: No filesystem is known for the scheme, or it cannot be set up.
    """
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    try:
        if scheme == "file":
            path = Path(uri.removeprefix("file://")).expanduser().absolute()
            return Location(fsspec.filesystem("file"), path.as_posix())
        fs, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        problem = str(error).splitlines()[0]
        raise StorageError(
            f"{uri}: no filesystem for {scheme}://: {problem}; use a local path or s3://, or "
            "install it"
        ) from error
    return Location(fs, path.rstrip("/"))


def check_writable(location: Location) -> None:
    """Write, read and delete a small file, so that a run fails before it has cost anything.

    Raises:
        StorageError: The place cannot be reached or written.
    """
    probe = location.impatient() / f".llavamed-{uuid.uuid4().hex[:8]}"
    probe.write_bytes(b"ok")
    if probe.read_bytes() != b"ok":
        raise StorageError(f"{location}: what was written does not read back; check the storage")
    probe.remove()
