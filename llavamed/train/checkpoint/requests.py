"""Notice requests for a checkpoint while a stage trains."""

import threading
from contextlib import suppress

from llavamed.errors import StorageError
from llavamed.storage.checkpoint_request import find_request, take_back_request
from llavamed.storage.location import Location

LOOK_SECONDS = 5.0
"""Seconds between two looks into storage."""


class CheckpointRequests:
    """Looks for requests in a thread while it is entered; on rank 0 only, which tells the others.

    A storage that does not answer stops nothing: it is looked at again some seconds later. A
    request that is written between a look and the deletion of an answered one is deleted with it:
    who made it gets the next checkpoint of `checkpoint.every_steps`, and no step is lost by that.
    """

    def __init__(self, folder: Location, *, is_first: bool) -> None:
        """Prepare to look.

        Args:
            is_first: Whether this is rank 0.
        """
        self._folder, self._is_first = folder, is_first
        self._found: bytes | None = None
        self._answered: bytes | None = None
        self._ended = threading.Event()

    def __enter__(self) -> "CheckpointRequests":
        if self._is_first:
            threading.Thread(target=self._look, name="requests", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @property
    def is_open(self) -> bool:
        """Whether there is a request that was not answered."""
        return self._found not in (None, self._answered)

    def answer(self) -> None:
        """Note that a checkpoint of this moment is being saved."""
        self._answered = self._found

    def _look(self) -> None:
        folder = self._folder.without_retries()
        while not self._ended.wait(LOOK_SECONDS):
            with suppress(StorageError):
                self._found = find_request(folder)
                if self._found is not None and not self.is_open:
                    take_back_request(folder)
