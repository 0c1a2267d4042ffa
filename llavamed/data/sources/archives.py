"""Read folders that are still packed as zip archives, as hubs publish them, without unpacking.

A member of a zip archive is read in place, like a file. A tar archive, which has no table of
contents, or a compressed one does not allow this and must be unpacked.
"""

import posixpath
import zipfile

from llavamed.data.sources.files import absent, damaged
from llavamed.errors import DataError
from llavamed.storage.location import Location, locate

ZIP = ".zip"
_OTHERS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_OF_MACOS = "__MACOSX"


def open_folder(uri: str) -> Location:
    """Return the folder that a URI names, which may be packed as a zip archive.

    Raises:
        DataError: The archive is absent, damaged or of another kind.
    """
    return _unpacked(locate(uri))


def open_packed(folder: Location) -> Location:
    """Return a folder; if it is absent, the inside of the zip archive of the same name next to it.

    Raises:
        DataError: The archive is damaged, or of another kind.
    """
    if folder.exists():
        is_packed = folder.name.lower().endswith((ZIP, *_OTHERS))
        return _unpacked(folder) if is_packed and not folder.fs.isdir(folder.path) else folder
    above, _, name = folder.path.rstrip("/").rpartition("/")
    place = Location(folder.fs, above, folder.attempts)
    if (place / (name + ZIP)).exists():
        return inside(place / (name + ZIP))
    for packed in (name + ending for ending in _OTHERS):
        if (place / packed).exists():
            raise DataError(f"path={place}: its images are packed; unpack {packed} there")
    return folder


def _unpacked(place: Location) -> Location:
    if place.name.lower().endswith(_OTHERS):
        raise DataError(
            f"path={place}: of archives only zip is read in place; unpack it and name the folder, "
            "or pack it as zip"
        )
    return inside(place) if place.name.lower().endswith(ZIP) else place


def inside(archive: Location) -> Location:
    """Return the folder that a zip archive holds, without the folders that hold nothing else.

    Raises:
        DataError: It is absent or damaged.
    """
    from fsspec.implementations.zip import ZipFileSystem

    try:
        packed = ZipFileSystem(
            archive.path,
            target_protocol=archive.schemes[0],
            target_options=dict(archive.fs.storage_options),
        )
    except FileNotFoundError as error:
        raise absent(archive) from error
    except zipfile.BadZipFile as error:
        raise damaged(archive, "zip", error) from error
    folder = ""
    while True:
        found = [each for each in packed.ls(folder) if _is_content(each["name"])]
        if len(found) != 1 or found[0]["type"] != "directory" or found[0]["name"] == folder:
            return Location(packed, folder, archive.attempts)
        folder = found[0]["name"]


def _is_content(path: str) -> bool:
    name = posixpath.basename(path)
    return name != _OF_MACOS and not name.startswith(".")
