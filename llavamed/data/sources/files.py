"""The files that sources lie in: found, hashed, read in pieces, with damage named."""

import errno
import hashlib
import posixpath
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from llavamed.data.sources.image_names import names_below
from llavamed.errors import DataError, SampleError, StorageError
from llavamed.storage.location import Location, locate
from llavamed.storage.retry import with_retries

_NO_FILE = {errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_WILDCARD = re.compile(r"[*?\[]")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class FileOfRows(ABC):
    """The part of a source that is one file of rows and a folder of images that they name."""

    def __init__(self, file: Location, images: Location) -> None:
        self._file = file
        self._images = images

    def count(self) -> int:
        """Rows of the file."""
        return sum(1 for _ in self.rows())

    def content_hash(self) -> str:
        """SHA-256 of the file."""
        return hash_file(self._file)

    @abstractmethod
    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the file, one by one. Raises: DataError."""

    def load_image(self, reference: str) -> bytes:
        """An image by its name below the folder. Raises: SampleError."""
        return load_image_file(self._images, reference)


@contextmanager
def open_file(location: Location, **options: Any) -> Iterator[Any]:
    """A file to read, with options for fsspec. Raises: DataError, if it is absent; StorageError."""
    try:
        with location.open(**options) as file:
            yield file
    except FileNotFoundError as error:
        raise absent(location) from error


def absent(location: Location) -> DataError:
    """The error that says a file is not there."""
    return DataError(f"path={location}: no such file; check the dataset's path")


def hash_file(location: Location) -> str:
    """SHA-256 of a file, read in pieces. Raises: DataError, when it is not there."""
    digest = hashlib.sha256()
    with open_file(location) as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def damaged(location: Location, kind: str, fact: object) -> DataError:
    """The error that says a file is not what it should be."""
    lines = str(fact).splitlines() or [""]
    return DataError(f"path={location}: not {kind}: {lines[0]}; download or export the file again")


def load_image_file(folder: Location, name: str) -> bytes:
    """An image below a folder, by any name that `names_below` understands.

    Raises:
        SampleError: `missing_image`, or `unsafe_path` for a name that leads out of the folder.
    """
    names = names_below(folder, name)
    if not names:
        raise SampleError("unsafe_path", f"image {name!r} is not below the image folder")
    for inner in names:
        if inner.endswith("/"):
            break
        with suppress(FileNotFoundError):
            return _read_image(folder / inner)
    fact = "not a file" if name.endswith("/") else "no such file"
    raise SampleError("missing_image", f"{folder / names[0]}: {fact}")


def _read_image(file: Location) -> bytes:
    try:
        return file.read_bytes()
    except StorageError as error:
        if getattr(error.__cause__, "errno", None) not in _NO_FILE:
            raise  # the storage fails, not the sample
        raise SampleError("missing_image", f"{file}: not a file") from error


def find_files(uri: str, suffix: str) -> list[Location]:
    """The files a dataset's path stands for, sorted: a file, all in a folder, or by a pattern.

    In a pattern `*` is any text without a slash and `{000..031}` a range of numbers. A name that
    begins with a dot or an underscore is not data.

    Raises:
        DataError: There is none, or one of a range is missing.
    """
    if numbers := _RANGE.search(uri):
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") else 0
        pieces = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
        uris = [uri[: numbers.start()] + piece + uri[numbers.end() :] for piece in pieces]
        return [file for piece in uris for file in find_files(piece, suffix)]
    place = locate(uri)
    is_pattern = _WILDCARD.search(place.path) is not None and not place.exists()
    place.fs.invalidate_cache()  # another process may have written it
    if with_retries(place, "look at", partial(place.fs.isfile, place.path)):
        return [place]
    listing = place.fs.glob if is_pattern else place.fs.find
    found = with_retries(place, "list", partial(listing, place.path))
    names = (path for path in sorted(found) if path.endswith(suffix))
    files = [Location(place.fs, p) for p in names if posixpath.basename(p)[0] not in "._"]
    if not files:
        raise DataError(f"path={uri}: no *{suffix} file there; check the dataset's path")
    return files
