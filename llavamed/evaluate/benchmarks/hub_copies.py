"""Find the Parquet files of a split below a folder, as Hugging Face lays out data sets.

These are `data/{split}-00000-of-00001.parquet`, `{part}/{split}-*.parquet`, and those of its
converter, `default/{split}/0000.parquet` or `{part}/{split}/0000.parquet`, where a part is a subset
or subject. All files may also lie in one folder.
"""

import re
from collections.abc import Iterator, Sequence

from llavamed.errors import DataError
from llavamed.storage.location import Location

SPLITS = {each: each for each in ("train", "dev", "validation", "test")}
SPLITS |= dict.fromkeys(("val", "validate"), "validation")
"""Words for splits, with the names of the splits."""
_ENDING = ".parquet"
_FOLDERS = ("", "data", "default")


def files_of_split(
    folder: Location, split: str, splits: Sequence[str], parts: Sequence[str] = ()
) -> list[Location]:
    """Return the Parquet files of a split in a known layout, or none where there is no such file.

    A file is of the split that it, or its folder, is named after. Files that are named after no
    split are of any, where no file is named after one.

    Args:
        folder: The folder of a data set.
        splits: All splits of the benchmark.
        parts: Folders of parts of the data set; where one has files, the others are left out.

    Raises:
        DataError: There are files of other splits only.
    """
    found = [file for part in parts for file in _files_in(folder, part, splits)]
    found = found or [file for name in _FOLDERS for file in _files_in(folder, name, splits)]
    named = [(_split_of(file.path[len(folder.path) :], splits), file) for file in found]
    there = {name for name, _ in named if name}
    if there and split not in there:
        raise DataError(
            f"path={folder}: has Parquet files of {', '.join(sorted(there))}, and none of {split}; "
            "name another --split, or the file itself"
        )
    return [file for name, file in named if name == (split if there else "")]


def _files_in(folder: Location, name: str, splits: Sequence[str]) -> Iterator[Location]:
    place = folder / name if name else folder
    for child in place.children():
        if child.endswith(_ENDING):
            yield place / child
        elif _split_of(child, splits):
            inner = place / child
            yield from (inner / each for each in inner.children() if each.endswith(_ENDING))


def _split_of(path: str, splits: Sequence[str]) -> str:
    """Return the split that the last telling part of a path names, or an empty text."""
    for part in reversed(path.lower().split("/")):
        for split in sorted(splits, key=len, reverse=True):
            if re.search(rf"(?<![a-z0-9]){split}(?![a-z0-9])", part):
                return split
        words = [SPLITS[word] for word in re.split("[^a-z]+", part) if word in SPLITS]
        if words:
            return words[0]
    return ""
