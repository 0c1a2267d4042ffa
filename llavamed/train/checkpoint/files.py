"""Upload the files of a checkpoint, and copy them back checked against their hashes."""

import hashlib
import re
from pathlib import Path

from llavamed.errors import DamagedCheckpointError
from llavamed.storage.location import Location
from llavamed.storage.manifest import FileFacts
from llavamed.storage.scratch import scratch_errors

_OF_A_RANK = re.compile(r"(?:pp|of)_rank_(\d+)_")
_CHUNK_BYTES = 16 << 20
"""Number of bytes of a file that are in memory while it is copied."""


def hash_files(folder: Path) -> dict[str, FileFacts]:
    """Return the size and SHA-256 of every file below a folder, by relative path."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            facts = FileFacts(bytes=path.stat().st_size, sha256=digest)
            files[path.relative_to(folder).as_posix()] = facts
    return files


def publish(folder: Path, place: Location) -> dict[str, FileFacts]:
    """Upload a local folder to its place. Raises: StorageError.

    Returns:
        Its files, as `hash_files` returns them.
    """
    files = hash_files(folder)
    place.upload(folder)
    return files


def fetch(
    place: Location, files: dict[str, FileFacts], folder: Path, *, rank: int | None = None
) -> None:
    """Copy the files of a checkpoint: all, or those that one rank reads.

    Raises:
        DamagedCheckpointError: A file is missing or not as it was written.
        StorageError: A file cannot be read.
    """
    for name, facts in files.items():
        owner = _OF_A_RANK.search(name)
        if rank is not None and owner is not None and int(owner.group(1)) != rank:
            continue
        _copy(place / name, facts, folder / name)


def _copy(file: Location, facts: FileFacts, target: Path) -> None:
    """Copy a file in pieces and check its hash.

    Raises:
        DamagedCheckpointError: The file is missing or not as it was written.
    """
    digest = hashlib.sha256()
    try:
        with file.open(cache_type="none") as source, scratch_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as copy:
                while piece := source.read(_CHUNK_BYTES):
                    digest.update(piece)
                    copy.write(piece)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file}: is missing") from error
    check_hash(file, facts, digest.hexdigest())


def check_hash(file: Location, facts: FileFacts, found: str) -> None:
    """Raise DamagedCheckpointError unless the SHA-256 found in a file is that of its manifest."""
    if found != facts.sha256:
        raise DamagedCheckpointError(f"{file}: differs from its manifest; it is damaged")
