"""Check that the weights of a model are whole, before anything is prepared for them."""

import json
import os
import posixpath

from llavamed.errors import ConfigError
from llavamed.storage.fetch import LFS_ADVICE, WEIGHTS, is_lfs_pointer
from llavamed.storage.location import Location, locate

_WHOLE = "model.safetensors"
_INDEXES = (f"{_WHOLE}.index.json", "pytorch_model.bin.index.json")
"""Lists of the files of weights that are in several, in the order in which they are looked for."""


def check_weight_files(source: str, key: str) -> None:
    """Check that a folder holds the files of its weights, and that none is cut off.

    Only the heads of the files are read. A name on the hub and a file of the form GGUF are not
    looked at: who downloads or reads them checks them whole.

    Args:
        source: A folder, its URI, or a name on the hub.
        key: The config key that names it, for errors.

    Raises:
        ConfigError: There are no weights, or some are missing or cut off.
        StorageError: The folder cannot be read.
    """
    if source.endswith(".gguf") or not ("://" in source or os.path.isdir(source)):
        return
    folder, named = locate(source), f"{key}={source}"
    sizes = {
        posixpath.relpath(path, folder.path): int(facts["size"])
        for path, facts in folder.list_files().items()
    }
    if not any(name.endswith(WEIGHTS) for name in sizes):
        raise ConfigError(
            f"{named}: holds no weights ({_WHOLE}), only {', '.join(sorted(sizes)[:3])} and the "
            "like; name a folder that has them"
        )
    wanted = _wanted(folder, sizes)
    if missing := [name for name in wanted if name not in sizes]:
        raise ConfigError(
            f"{named}: lacks {len(missing)} of the {len(wanted)} files of its weights, the first "
            f"is {missing[0]}; copy them there"
        )
    for name in wanted:
        head = (folder / name).read_bytes(0, 64)
        if is_lfs_pointer(head):
            raise ConfigError(f"{named}: {name} is a pointer of Git LFS; {LFS_ADVICE}")
        if name.endswith(".safetensors") and not _is_whole(folder / name, head, sizes[name]):
            raise ConfigError(
                f"{named}: {name} is cut off at {sizes[name]:,} bytes, or is no file of "
                "safetensors; copy it again"
            )


def _wanted(folder: Location, sizes: dict[str, int]) -> list[str]:
    """Return the names of the files that transformers will load, as far as that is known."""
    if _WHOLE in sizes:
        return [_WHOLE]
    for index in _INDEXES:
        if index in sizes:
            return sorted(set(json.loads((folder / index).read_bytes())["weight_map"].values()))
    return []


def _is_whole(file: Location, head: bytes, size: int) -> bool:
    """Return whether a file of safetensors has all bytes that it states at its beginning."""
    start = 8 + int.from_bytes(head[:8], "little")
    if start > size:
        return False
    try:
        tensors = json.loads(file.read_bytes(8, start))
    except ValueError:
        return False
    ends = [facts["data_offsets"][1] for name, facts in tensors.items() if name != "__metadata__"]
    return bool(start + max(ends, default=0) <= size)
