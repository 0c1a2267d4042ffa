"""Resolve the image names of rows below the image folder, on a disk or in a bucket.

Rows name images relative to the folder, by an absolute path or a full URI, with `./` and `..`, with
backslashes, and with composed or decomposed accents (NFC, NFD). All of these resolve alike wherever
the folder is, and none leads out of it. Percent signs are escapes only in a URI, and there only
if no file has the literal name.
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
    """Return the paths below a folder that a row's name may mean, the likeliest first.

    The list is empty if any spelling of the name leads out of the folder or holds a null byte.
    """
    paths = [_inside(folder, spelling) for spelling in _spellings(folder, name)]
    if None in paths:
        return []
    if "zip" in folder.schemes:  # whose top folder is left out, and rows may name it
        top = f"{folder.path.strip('/')}/"
        paths += [path.removeprefix(top) for path in paths if path and path.startswith(top)]
    forms = ((path, normalize("NFC", path), normalize("NFD", path)) for path in paths if path)
    return list(dict.fromkeys(chain.from_iterable(forms)))


def _spellings(folder: Location, name: str) -> list[str]:
    """Return the name as paths, absolute for a URI; none for a URI of another filesystem."""
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
    """Return the normalized path relative to the folder, or None if it leads out of it."""
    roots = [""]
    if path.startswith("/"):
        roots = ["/" + folder.path.rpartition("://")[2].strip("/")]
        if folder.is_local:  # rows may name the target of a symbolic link
            roots.append(os.path.realpath(folder.path))
    parts = posixpath.normpath(path.lstrip("/")).split("/")
    for root in roots:
        above = posixpath.normpath(root).strip("/")
        steps = above.split("/") if above not in {"", "."} else []
        if _same(parts[: len(steps)], steps):
            inner = parts[len(steps) :]
            if inner and inner != ["."] and inner[0] != "..":
                # A trailing slash names a folder, even in object storage without folders.
                return "/".join(inner) + "/" * path.endswith("/")
    return None


def _same(some: list[str], others: list[str]) -> bool:
    """Return whether two paths are equal apart from the composition of their accents."""
    return [normalize("NFC", part) for part in some] == [normalize("NFC", part) for part in others]
