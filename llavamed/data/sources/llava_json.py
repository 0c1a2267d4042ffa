"""Read LLaVA's JSON file and image folder, the format of LLaVA-Med's released datasets.

A list, or JSON lines, of `{"id", "image": name or [names], "conversations": [{"from", "value"}],
"domain": {name: bool}}`. `records` documents the other keys that are understood.
"""

from typing import Any

from llavamed.config.sources import LlavaJson
from llavamed.data.record import Record
from llavamed.data.sources.json_rows import JsonFile
from llavamed.data.sources.records import dialogue
from llavamed.storage.location import locate


class LlavaJsonSource(JsonFile):
    """Samples of a JSON file, streamed so that its size does not matter."""

    def __init__(self, read: LlavaJson) -> None:
        super().__init__(locate(read.path), locate(read.image_folder))
        self._licence = read.licence

    def parse(self, row: dict[str, Any]) -> Record:
        """Interpret one item.

        Raises:
            SampleError: A key is missing or a role is unknown.
        """
        return dialogue(row, None, id="", licence=self._licence)
