"""Find, hash and read the files of sources, and say what is damaged."""

import errno
import hashlib
import posixpath
import re
from collections.abc import Iterable, Iterator
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


@contextmanager
def open_file(location: Location, **options: Any) -> Iterator[Any]:
    """Open a file for reading.

    Raises:
        DataError: The file is absent, or a folder.
        StorageError: The file cannot be read.
    """
    try:
        with location.open(**options) as file:
            yield file
    except FileNotFoundError as error:
        raise absent(location) from error
    except StorageError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            raise DataError(f"path={location}: is a folder; name the file in it") from error
        raise


def absent(location: Location) -> DataError:
    """Return the error for a file that does not exist."""
    return DataError(f"path={location}: no such file; check the dataset's path")


def hash_file(location: Location) -> str:
    """Return the SHA-256 of a file, read in pieces. Raises: DataError."""
    digest = hashlib.sha256()
    with open_file(location) as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def damaged(location: Location, kind: str, fact: object) -> DataError:
    """Return the error for a file that is not of its kind.

    Args:
        kind: What the file should be.
        fact: What is wrong with it; only the first line is shown.
    """
    lines = str(fact).splitlines() or [""]
    return DataError(f"path={location}: not {kind}: {lines[0]}; download or export the file again")


def load_image_file(folder: Location, name: str) -> bytes:
    """Read an image below a folder by any name that `names_below` understands.

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


def load_from_folder(folder: Location, name: str) -> bytes:
    """Read an image as `load_image_file` does, below a folder that the config names.

    Raises:
        SampleError: As `load_image_file`.
        DataError: The folder itself is not there.
    """
    try:
        return load_image_file(folder, name)
    except SampleError as error:
        if folder.exists():
            raise
        raise DataError(
            f"image_folder={folder}: no such folder, but samples name images in it; correct it"
        ) from error


def _read_image(file: Location) -> bytes:
    try:
        return file.read_bytes()
    except StorageError as error:
        if getattr(error.__cause__, "errno", None) not in _NO_FILE:
            raise  # the storage fails, not the sample
        raise SampleError("missing_image", f"{file}: not a file") from error


def find_files(path: str | Location, suffix: str) -> list[Location]:
    """Return the files that a dataset's path names, sorted: one file, a folder's, or a pattern's.

    In a pattern, `*` matches any text without a slash, and `{000..031}` expands to a range of
    numbers. Files whose name begins with a dot or an underscore are skipped.

    Raises:
        DataError: There is no file, or one of a range is missing.
    """
    if isinstance(path, str) and (numbers := _RANGE.search(path)):
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") else 0
        pieces = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
        uris = [path[: numbers.start()] + piece + path[numbers.end() :] for piece in pieces]
        return [file for piece in uris for file in find_files(piece, suffix)]
    place = locate(path) if isinstance(path, str) else path
    is_pattern = _WILDCARD.search(place.path) is not None and not place.exists()
    place.fs.invalidate_cache()  # another process may have written it
    if with_retries(place, "look at", partial(place.fs.isfile, place.path)):
        return [place]
    if not is_pattern:
        return find_below(place, suffix)
    return _chosen(place, with_retries(place, "list", partial(place.fs.glob, place.path)), suffix)


def find_below(folder: Location, suffix: str) -> list[Location]:
    """Return the sorted files below a folder, without those that begin with a dot or an underscore.

    Raises:
        DataError: There is none.
    """
    return _chosen(folder, folder.list_files(), suffix)


def _chosen(place: Location, found: Iterable[str], suffix: str) -> list[Location]:
    found = sorted(found)
    names = (path for path in found if path.endswith(suffix))
    files = [Location(place.fs, p) for p in names if posixpath.basename(p)[0] not in "._"]
    if not files and any(path.endswith(".arrow") for path in found):
        raise DataError(
            f"path={place}: holds Arrow files, as `save_to_disk` writes; write each split as "
            "Parquet with `to_parquet` of Hugging Face's datasets, and name that file"
        )
    if not files:
        raise DataError(f"path={place}: no *{suffix} file there; check the dataset's path")
    return files
