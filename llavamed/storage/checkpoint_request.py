"""Ask a run for a checkpoint now, by a file in its folder that a stage in training looks for.

The content of the file is unique, so that each request is answered once.
"""

import uuid

from llavamed.storage.location import Location

REQUEST = "checkpoint-request"


def ask_for_checkpoint(folder: Location) -> None:
    """Ask the run of a folder for a checkpoint. Raises: StorageError."""
    (folder / REQUEST).write_bytes(uuid.uuid4().hex.encode())


def find_request(folder: Location) -> bytes | None:
    """Return the mark of the request in the folder of a run, or None. Raises: StorageError."""
    try:
        return (folder / REQUEST).read_bytes()
    except FileNotFoundError:
        return None


def take_back_request(folder: Location) -> None:
    """Delete a request, answered or not. Raises: StorageError."""
    (folder / REQUEST).remove()
