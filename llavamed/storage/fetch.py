"""Fetch a folder from object storage to this machine, once for all its processes.

The copy is below the machine's folder for temporary files (`TMPDIR`) and is named after what the
source holds, so a source that changes is fetched again and a complete copy is used as it is.
A copy that nothing has asked for in a day is deleted when another one is fetched.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llavamed.errors import StorageError
from llavamed.storage.location import locate

KEEP_SECONDS = 24 * 3600.0
"""A copy is kept for so long after it was last asked for."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")
_IDENTITY = ("size", "ETag", "etag", "md5Hash", "LastModified", "mtime", "updated")
"""What filesystems tell of a file that changes with its content."""

LFS_ADVICE = "fetch the files, for example with `git lfs pull`"
"""What to do about pointers of Git LFS."""


def is_lfs_pointer(head: bytes) -> bool:
    """Return whether a file that begins so is a pointer of Git LFS, and not the file itself."""
    return head.startswith(b"version https://git-lfs")


def lfs_pointers(folder: str) -> list[str]:
    """Return the names of the files of a folder that are pointers of Git LFS."""
    if not os.path.isdir(folder):
        return []
    files = [file for file in Path(folder).iterdir() if file.is_file()]
    return sorted(file.name for file in files if is_lfs_pointer(_head(file)))


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(64)


def fetch_once(source: str, *, weights: bool | str = True) -> str:
    """Return a local folder with what `source` names. Raises: StorageError.

    Args:
        source: A URI, which is fetched; anything else is returned as it is.
        weights: Fetch the weights too, or only the file of this name; configs and tokenizers are
            small without them.
    """
    if "://" not in source:
        return source
    place = locate(source)
    if place.is_local:
        return place.path
    files = {
        path: facts
        for path, facts in place.list_files().items()
        if weights is True or Path(path).name == weights or not path.endswith(WEIGHTS)
    }
    if not files:
        raise StorageError(f"{source}: no such folder; check the path")
    identity = {
        path: {key: str(facts[key]) for key in _IDENTITY if key in facts}
        for path, facts in files.items()
    }
    text = json.dumps([source, identity], sort_keys=True)
    cache = _own_folder()
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:16]
    with _locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _delete_unused(cache)
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                partial = Path(scratch) / "files"
                place.download_files(list(files), partial)
                partial.rename(folder)
        os.utime(folder)  # the time of its last use
    return str(folder)


def _delete_unused(cache: Path) -> None:
    """Delete the copies that are no longer used, and what killed fetches have left."""
    for folder in cache.iterdir():
        with suppress(FileNotFoundError):  # deleted by another process
            if folder.is_dir() and time.time() - folder.stat().st_mtime > KEEP_SECONDS:
                shutil.rmtree(folder)


def _own_folder() -> Path:
    """Return the folder of the copies, which no other user of the machine can write."""
    folder = Path(tempfile.gettempdir()) / f"llavamed-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StorageError(
            f"TMPDIR={folder.parent}: {folder.name} in it belongs to another user; set TMPDIR to a "
            "folder of your own"
        )
    return folder


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Let in one process of this machine at a time; the system unlocks for a killed one."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
