"""Read LLaVA's JSON file and image folder, the format of LLaVA-Med's released datasets, or CSV.

A list, or JSON lines, of `{"id", "image": name or [names], "conversations": [{"from", "value"}],
"domain": {name: bool}}`. `records` documents the other keys that are understood; those with one
value may also be the columns of a CSV file.
"""

from collections.abc import Iterator
from typing import Any

from llavamed.config.sources import LlavaJson
from llavamed.data.record import Record
from llavamed.data.sources.csv_rows import is_csv, stream_csv
from llavamed.data.sources.file_of_rows import FileOfRows
from llavamed.data.sources.json_rows import stream_json
from llavamed.data.sources.records import DIALOGUE_KEYS, PAIRS, dialogue
from llavamed.storage.location import locate


class DialogueFile(FileOfRows):
    """A JSON or CSV file of dialogues, streamed, and a folder of images."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the file.

        Raises:
            DataError: The file is absent or damaged, or the images are still packed.
        """
        _ = self._images  # fail before the first row if the archive cannot be read
        if is_csv(self._file):
            return stream_csv(self._file, (*DIALOGUE_KEYS, *PAIRS))
        return stream_json(self._file)


class LlavaJsonSource(DialogueFile):
    """Samples of a JSON or CSV file."""

    def __init__(self, read: LlavaJson) -> None:
        super().__init__(locate(read.path), locate(read.image_folder))
        self._licence = read.licence

    def parse(self, row: dict[str, Any]) -> Record:
        """Interpret one item.

        Raises:
            SampleError: A key is missing or a role is unknown.
        """
        return dialogue(row, None, id="", licence=self._licence)
