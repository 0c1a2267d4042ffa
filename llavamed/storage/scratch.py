"""Make temporary folders, with errors that say what to do when a disk is full."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llavamed.errors import StorageError

_TORCH_WRITER = "inline_container.cc"
"""Where `torch.save` finds that a disk is full, by a RuntimeError."""
_SAFETENSORS = "SafetensorError"
"""What safetensors raises then, by name, because few commands need to import it."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a temporary folder, which is deleted at the end.

    Raises:
        StorageError: It cannot be made, or a file cannot be written into it.
    """
    with scratch_errors(), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def scratch_errors() -> Iterator[None]:
    """Turn an error of writing into a temporary folder into a sentence. Raises: StorageError."""
    try:
        yield
    except Exception as error:
        is_of_torch = isinstance(error, RuntimeError) and _TORCH_WRITER in str(error)
        is_of_safetensors = type(error).__name__ == _SAFETENSORS
        if not (isinstance(error, OSError) or is_of_torch or is_of_safetensors):
            raise
        reason = " ".join(str(error).split())
        raise StorageError(
            f"{tempfile.gettempdir()}: cannot write there: {reason}; free space there, or set "
            "TMPDIR to a place with more"
        ) from error
