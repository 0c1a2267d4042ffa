"""The base of sources that are one file of rows and a folder of images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from llavamed.data.sources.archives import open_packed
from llavamed.data.sources.files import hash_file, load_from_folder
from llavamed.storage.location import Location


class FileOfRows(ABC):
    """Base of sources that consist of one file of rows and a folder of images, packed or not."""

    def __init__(self, file: Location, images: Location) -> None:
        self._file = file
        self._image_folder = images

    @cached_property
    def _images(self) -> Location:
        """The folder of images, or the inside of its archive. Raises: DataError."""
        return open_packed(self._image_folder)

    def count(self) -> int:
        """Return the number of rows of the file."""
        return sum(1 for _ in self.rows())

    def content_hash(self) -> str:
        """Return the SHA-256 of the file."""
        return hash_file(self._file)

    @abstractmethod
    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the file. Raises: DataError."""

    def load_image(self, reference: str) -> bytes:
        """Read an image by its name below the folder.

        Raises:
            SampleError: `missing_image` or `unsafe_path`.
            DataError: The folder itself is not there.
        """
        return load_from_folder(self._images, reference)
