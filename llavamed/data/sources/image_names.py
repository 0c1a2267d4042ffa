"""Where the picture that a row names lies below its image folder, on a disk or in a bucket.

Rows name pictures as those who wrote them did: below the folder, by an absolute path or a full URI,
with `./` and `..`, with backslashes, with accents composed or not (NFC, NFD). All of these are read
alike wherever the folder lies, and none leads out of it. Percent signs stand for bytes in a URI
alone, and there only when no file has the name as it is.
"""

import os.path
import posixpath
import re
from itertools import chain
from unicodedata import normalize
from urllib.parse import unquote

from llavamed.storage.location import Location

_URI = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_FILE = re.compile(r"file:(?://(?:localhost(?=/))?)?(/.*)", re.IGNORECASE | re.DOTALL)
_DRIVE = re.compile(r"/?[a-z]:[\\/]", re.IGNORECASE)


def names_below(folder: Location, name: str) -> list[str]:
    """The normal names below a folder that a row's name may stand for, the likeliest first.

    There is none when it leads out of the folder in any spelling, or holds a null byte.
    """
    paths = [_inside(folder, spelling) for spelling in _spellings(folder, name)]
    if None in paths:
        return []
    forms = ((path, normalize("NFC", path), normalize("NFD", path)) for path in paths if path)
    return list(dict.fromkeys(chain.from_iterable(forms)))


def _spellings(folder: Location, name: str) -> list[str]:
    """The name as paths, absolute where it is a URI; none for a URI of another filesystem."""
    if "\0" in name or _DRIVE.match(name):
        return []
    if file := _FILE.fullmatch(name):
        paths = [file[1], unquote(file[1])] if folder.is_local else []
        return [path for path in paths if not _DRIVE.match(path) and "\0" not in path]
    if uri := _URI.fullmatch(name):
        if uri[1].lower() not in folder.schemes:
            return []
        return [f"/{path}" for path in (uri[2], unquote(uri[2])) if "\0" not in path]
    return [name, name.replace("\\", "/")]


def _inside(folder: Location, path: str) -> str | None:
    """The path relative to the folder, normal; None when it leads out of it."""
    roots = [""]
    if path.startswith("/"):
        roots = ["/" + folder.path.rpartition("://")[2].strip("/")]
        if folder.is_local:  # rows may name what the folder is a link to
            roots.append(os.path.realpath(folder.path))
    parts = posixpath.normpath(path.lstrip("/")).split("/")
    for root in roots:
        above = posixpath.normpath(root).strip("/")
        steps = above.split("/") if above not in {"", "."} else []
        if _same(parts[: len(steps)], steps):
            inner = parts[len(steps) :]
            if inner and inner != ["."] and inner[0] != "..":
                # A name that ends in a slash is that of a folder, also where folders are no files.
                return "/".join(inner) + "/" * path.endswith("/")
    return None


def _same(some: list[str], others: list[str]) -> bool:
    """Whether both are the same path, however its accents are written."""
    return [normalize("NFC", part) for part in some] == [normalize("NFC", part) for part in others]
