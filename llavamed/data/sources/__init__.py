"""Where samples come from: one file a format, all behind `Source`.

`rows` lists, `parse` understands, `load_image` fetches. The first runs in one process and must be
cheap and stream; the other two run in parallel and may refuse a single sample with `BadSample`.
"""

import errno
import hashlib
import posixpath
from collections.abc import Iterator
from typing import Any, Protocol

from llavamed.config.datasets import LlavaJson, Phantoms, VqaRad
from llavamed.data.sample import Record
from llavamed.errors import BadSample, DataError, StorageError
from llavamed.storage import Location, readable_errors

_NO_FILE = {errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


class Source(Protocol):
    """A dataset in the format it was published in."""

    def count(self) -> int:
        """How many rows there are, the unusable ones included."""

    def content_hash(self) -> str:
        """A hash of what is listed, equal for equal content; of the listing, not of the images."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Stream the raw rows, JSON-serialisable, in the source's own order."""

    def parse(self, row: dict[str, Any]) -> Record:
        """Understand one raw row. Raises: BadSample."""

    def load_image(self, reference: str) -> bytes:
        """Fetch the encoded bytes of an image. Raises: BadSample("missing_image", ...)."""


def open_source(read: Phantoms | LlavaJson | VqaRad) -> Source:
    """The source that a dataset's `read` section describes."""
    from llavamed.data.sources import phantoms
    from llavamed.data.sources.llava_json import LlavaJsonSource
    from llavamed.data.sources.vqa_rad import VqaRadSource

    match read:
        case Phantoms():
            return phantoms.Phantoms(**read.model_dump(exclude={"source"}))
        case LlavaJson():
            return LlavaJsonSource(read)
        case VqaRad():
            return VqaRadSource(read)


def hash_file(location: Location) -> str:
    """SHA-256 of a file, read in pieces. Raises: DataError, when it is not there."""
    digest = hashlib.sha256()
    try:
        with readable_errors(location, "read"), location.fs.open(location.path, "rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    except FileNotFoundError as error:
        raise DataError(f"path={location}: no such file; check the dataset's path") from error
    return digest.hexdigest()


def load_image_file(folder: Location, name: str) -> bytes:
    """An image below a folder.

    Raises:
        BadSample: `missing_image`, or `unsafe_path` for a name that leads out of the folder.
    """
    parts = posixpath.normpath(name).split("/")
    if posixpath.isabs(name) or ".." in parts or parts == ["."] or "\0" in name:
        raise BadSample("unsafe_path", f"image {name!r} is not below the image folder")
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise BadSample("missing_image", f"{folder / name}: no such file") from error
    except StorageError as error:
        if getattr(error.__cause__, "errno", None) not in _NO_FILE:
            raise  # the storage fails, not the sample
        raise BadSample("missing_image", f"{folder / name}: not a file") from error
