"""Files and folders at any URI: a local path, `s3://`, `gs://` and whatever fsspec can open.

Credentials come from the environment, as each cloud's own tools read them (`AWS_ACCESS_KEY_ID`,
...), never from a config; `storage.access` says what else a URI may state. A folder is complete
when its `manifest.json` exists, which is why every writer writes that file last.

A failure that may pass is tried again, a write is of a whole file, and only tables need Arrow.
"""

import json
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import fsspec

from llavamed.errors import DamagedFileError, StorageError
from llavamed.storage.access import MAX_CONNECTIONS, read_access, write_access
from llavamed.storage.ranges import RangeFile
from llavamed.storage.retry import ATTEMPTS, RetryingFile, with_retries

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
UNRETRIED_TIMEOUT_SECONDS = 2.0
"""Time in which an S3 server must answer a request that is not tried again."""
UNRETRIED_LIMIT_SECONDS = 30.0
"""Time in which an operation that is not tried again must end, with the client's own tries."""
LISTING_LIMIT_SECONDS = 300.0
"""Time in which one attempt to list a folder, or to look whether a file exists, must end."""
_PARTIAL = ".partial"
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
"""Filesystems of buckets. Their makedirs makes a bucket; their consoles store a folder as an empty
object `name/`."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Location:
    """A file or folder: its filesystem, its path there, and how often operations are tried."""

    fs: fsspec.AbstractFileSystem
    path: str
    attempts: int = ATTEMPTS

    def __truediv__(self, name: str) -> "Location":
        return Location(self.fs, posixpath.join(self.path, name), self.attempts)

    def __str__(self) -> str:
        if self.is_local:
            return self.path
        if "zip" in self.schemes:
            return f"{Location(self.fs.of.fs, self.fs.of.path) / self.path}"
        return f"{self.fs.unstrip_protocol(self.path)}{write_access(self.fs)}"

    def without_retries(self) -> "Location":
        """Return the same place, where an operation that fails is not tried again.

        An S3 server that does not answer is given up within seconds, and an operation ends within
        `UNRETRIED_LIMIT_SECONDS`. Other operations are tried for more than a minute, which a long
        run may need.
        """
        if "s3" not in self.schemes:
            return Location(self.fs, self.path, attempts=1)
        few = self.fs.config_kwargs | {
            "connect_timeout": UNRETRIED_TIMEOUT_SECONDS,
            "read_timeout": UNRETRIED_TIMEOUT_SECONDS,
            "retries": {"max_attempts": 1},
        }
        arguments = self.fs.storage_options | {"config_kwargs": few}
        return Location(type(self.fs)(**arguments), self.path, attempts=1)

    def _limit(self, seconds: float | None = None) -> dict[str, float]:
        """Return the argument that ends a call that would otherwise wait for its client forever.

        The client of an object store works in a thread of its own. It gives up a server that does
        not answer, but not its own locks and threads, on which a request can wait too.
        """
        limit = UNRETRIED_LIMIT_SECONDS if self.attempts == 1 else seconds
        return {"timeout": limit} if limit and self.fs.async_impl else {}

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def is_local(self) -> bool:
        """Whether the path is on this machine."""
        return "file" in self.schemes

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes of URIs of its filesystem, such as `s3` and `s3a`."""
        known = self.fs.protocol
        return (known,) if isinstance(known, str) else tuple(known)

    def _make_parent(self, path: str) -> None:
        """Create the folder of a file, but never a bucket, whose name may be misspelt."""
        if not _BUCKETS.intersection(self.schemes):
            self.fs.makedirs(posixpath.dirname(path), exist_ok=True)

    def exists(self) -> bool:
        """Return whether a file or folder exists now."""
        self.fs.invalidate_cache()  # another process may have written it
        limit = self._limit(LISTING_LIMIT_SECONDS)
        return with_retries(self, "look at", lambda: bool(self.fs.exists(self.path, **limit)))

    @contextmanager
    def open(self, **options: Any) -> Iterator[BinaryIO]:
        """Open the file for reading, with options for fsspec.

        A read that fails is tried again from where it began.

        Raises: FileNotFoundError, StorageError.
        """
        with with_retries(self, "read", lambda: self.fs.open(self.path, "rb", **options)) as raw:
            yield cast("BinaryIO", RetryingFile(self, raw))

    def _open_ranges(self, size: int | None) -> AbstractContextManager[BinaryIO]:
        """Open the file for Arrow, which reads ranges of it."""
        if self.is_local:
            import pyarrow as pa

            return pa.OSFile(self.path)  # reads without Python, so other threads run meanwhile
        if not _BUCKETS.intersection(self.schemes):
            return self.open(cache_type="none")
        opened = partial(RangeFile, self.fs, self.path, size, self._limit())
        return nullcontext(cast("BinaryIO", RetryingFile(self, with_retries(self, "read", opened))))

    def read_bytes(self, start: int | None = None, end: int | None = None) -> bytes:
        """Return the whole file, or its bytes from `start` to before `end`.

        Raises: FileNotFoundError, StorageError.
        """
        part = {"start": start, "end": end, **self._limit()}
        data = with_retries(self, "read", lambda: self.fs.cat_file(self.path, **part))
        return cast("bytes", data)

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file or nothing, even if the process is killed half way."""
        with_retries(self, "write", lambda: self._write(data))

    def _write(self, data: bytes) -> None:
        self._make_parent(self.path)
        if self.is_local:
            with self._unfinished(data) as unfinished:
                os.replace(unfinished, self.path)
        else:  # object stores publish an object when it is whole
            self.fs.pipe_file(self.path, data, **self._limit())

    @contextmanager
    def _unfinished(self, data: bytes) -> Iterator[Path]:
        """Write a local file under another name next to this one, and delete it at the end."""
        unfinished = Path(f"{self.path}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
        try:
            unfinished.write_bytes(data)
            yield unfinished
        finally:
            unfinished.unlink(missing_ok=True)

    def create(self, data: bytes) -> bool:
        """Write the whole file unless there is one; return whether this call wrote it.

        Only one of several callers at once gets True, if `can_create_exclusively`. A caller whose
        answer was lost on its way gets False.
        """
        return with_retries(self, "write", lambda: self._create(data))

    def _create(self, data: bytes) -> bool:
        self._make_parent(self.path)
        try:
            if self.is_local:
                with self._unfinished(data) as unfinished:
                    os.link(unfinished, self.path)
            else:
                self.fs.pipe_file(self.path, data, mode="create", **self._limit())
        except FileExistsError:
            return False
        return True

    def can_create_exclusively(self) -> bool:
        """Return whether `create` in this folder gives True to exactly one of many callers.

        Object stores promise it if they know If-None-Match, and file systems if they have hard
        links. For others fsspec looks for the file first, which is too early.
        """
        if not self.is_local and not _BUCKETS.intersection(self.schemes):
            return False
        probe = self / f".llavamed-{uuid.uuid4().hex[:8]}"
        try:
            return probe.create(b"1") and not probe.create(b"2")
        except (StorageError, NotImplementedError):
            return False
        finally:
            probe.remove()

    def read_json(self) -> Any:
        """Return the file as JSON. Raises: FileNotFoundError, StorageError."""

        def read() -> Any:
            try:
                return json.loads(self.read_bytes())
            except ValueError as error:
                raise self._damage("JSON", error) from error

        return with_retries(self, "read", read)

    def write_json(self, value: Any) -> None:
        """Write `value` as JSON with sorted keys, so that equal values give equal bytes."""
        self.write_bytes(to_json(value))

    def read_table(self) -> "pa.Table":
        """Return the file as a Parquet table. Raises: FileNotFoundError, StorageError."""
        import pyarrow.parquet as pq

        # Not pq.read_table, which takes 0.3 s to import and columns from folders named a=b.
        return self.read_parquet(
            lambda file: pq.ParquetFile(file, page_checksum_verification=True).read()
        )

    def read_parquet(self, read: Callable[[BinaryIO], _T], *, size: int | None = None) -> _T:
        """Return what `read` makes of the file, which is opened for Arrow.

        Args:
            read: Called with the open file.
            size: The size of the file in bytes, if it is known; an object store is asked otherwise.

        Raises:
            FileNotFoundError: There is no such file.
            DamagedFileError: Arrow, with `page_checksum_verification`, finds it damaged.
            StorageError: It cannot be read, or is beyond what Arrow can.
        """
        import pyarrow as pa

        def work() -> _T:
            with self._open_ranges(size) as file:
                try:
                    return read(file)
                except (MemoryError, FileNotFoundError):
                    raise
                except (pa.ArrowNotImplementedError, pa.ArrowCapacityError) as error:
                    reason = " ".join(str(error).split())
                    raise StorageError(
                        f"{self}: Arrow cannot read it ({reason}); write it again with smaller row "
                        "groups, or with another compression or type"
                    ) from error
                except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
                    if getattr(error, "errno", None) is not None:
                        raise  # the system's, of a local file
                    raise self._damage("Parquet", error) from error

        return with_retries(self, "read", work)

    def _damage(self, kind: str, error: Exception) -> DamagedFileError:
        reason = " ".join(str(error).split())
        return DamagedFileError(f"{self}: is not {kind} ({reason}); make it again", reason)

    def write_table(
        self, table: "pa.Table", *, row_group_size: int | None = None, compression: str = "zstd"
    ) -> None:
        """Write the table as Parquet, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            row_group_size=row_group_size,
            compression=compression,
            write_page_checksum=True,
            # A dictionary of pixels is their copy, and a row group is read whole: so a page is one.
            use_dictionary=False,
            data_page_size=64 << 20,
        )
        self.write_bytes(sink.getvalue().to_pybytes())

    def children(self) -> list[str]:
        """Return the sorted names in this folder, or none if there is no such folder."""
        self.fs.invalidate_cache()
        options = {"detail": False, **self._limit(LISTING_LIMIT_SECONDS)}
        try:
            found = with_retries(self, "list", lambda: self.fs.ls(self.path, **options))
        except FileNotFoundError:
            return []
        names = (posixpath.basename(path.rstrip("/")) for path in found if path != f"{self.path}/")
        return sorted(name for name in names if not name.endswith(_PARTIAL))

    def remove(self) -> None:
        """Delete the file, or the folder with all its content, if it exists."""
        with_retries(self, "delete", self._remove)

    def _remove(self) -> None:
        limit = self._limit()
        if _BUCKETS.intersection(self.schemes):
            # A request each: s3fs drops what a store says of each file of a request for many.
            with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
                list(pool.map(partial(self.fs.rm_file, **limit), self.fs.find(self.path, **limit)))
        elif self.fs.exists(self.path, **limit):
            self.fs.rm(self.path, recursive=True, **limit)

    def upload(self, folder: Path) -> None:
        """Copy every file below a local folder into this folder, `manifest.json` last."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for file in sorted(files, key=lambda path: path.name == MANIFEST):
            target = self / file.relative_to(folder).as_posix()
            if file.name == MANIFEST:
                target.write_bytes(file.read_bytes())
            else:
                with_retries(target, "write", partial(target._copy_from, file))

    def _copy_from(self, file: Path) -> None:
        self._make_parent(self.path)
        self.fs.put_file(str(file), self.path)

    def download(self, folder: Path) -> Path:
        """Return a local folder with the content of this one: itself if local, else a copy.

        Raises: StorageError.
        """
        if not self.exists():
            raise StorageError(f"{self}: no such folder; check the path")
        if self.is_local:
            return Path(self.path)
        self.download_files(list(self.list_files()), folder)
        return folder

    def list_files(self) -> dict[str, dict[str, Any]]:
        """Return the path of every file below this folder with what the filesystem tells of it."""
        self.fs.invalidate_cache()
        found = with_retries(self, "list", lambda: self.fs.find(self.path, detail=True))
        return {path: told for path, told in found.items() if not path.endswith("/")}

    def download_files(self, paths: list[str], folder: Path) -> None:
        """Copy files below this folder, by the paths of `list_files`, into a local one.

        Raises: StorageError, also where the name of an object leads out of the folder.
        """
        for path in paths:
            name = posixpath.relpath(path, self.path)
            if name.startswith("../"):  # a store takes any name, of whoever may write to it
                raise StorageError(
                    f"{self}: the name of object {path} leads out of this folder; delete the object"
                )
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            place = Location(self.fs, path, self.attempts)
            with_retries(place, "read", partial(self.fs.get_file, path, str(target)))


def to_json(value: Any) -> bytes:
    """Return `value` as JSON with sorted keys, so that equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def locate(uri: str) -> Location:
    """Return the location that a URI or path names; a relative path starts at the current folder.

    Raises:
        StorageError: No filesystem is known for the scheme, it cannot be set up, or the URI has an
            option that is not known.
    """
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    try:
        if scheme == "file":
            path = Path(uri.removeprefix("file://")).expanduser().absolute()
            return Location(fsspec.filesystem("file"), path.as_posix())
        plain, arguments = read_access(uri)
        if scheme in _BUCKETS:
            # Otherwise the answer could be a listing that another thread made before a write.
            arguments["use_listings_cache"] = False
        fs, path = fsspec.core.url_to_fs(plain, **arguments)
    except (ImportError, ValueError, OSError) as error:
        raise StorageError(
            f"{uri}: no filesystem for {scheme}://: {str(error).splitlines()[0]}; use a local path "
            "or s3://, or install it"
        ) from error
    return Location(fs, path.rstrip("/"))


def check_writable(location: Location) -> None:
    """Write, read and delete a small file, so that a run fails before it costs anything.

    Raises: StorageError.
    """
    probe = location.without_retries() / f".llavamed-{uuid.uuid4().hex[:8]}"
    probe.write_bytes(b"ok")
    if probe.read_bytes() != b"ok":
        raise StorageError(f"{location}: what was written does not read back; check the storage")
    probe.remove()
