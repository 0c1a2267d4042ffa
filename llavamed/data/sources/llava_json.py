"""LLaVA's JSON and image folder, the form in which LLaVA-Med's sets were released.

A list, or JSON lines, of `{"id", "image": name or [names], "conversations": [{"from", "value"}],
"domain": {name: bool}}`; what else is understood says `records`.
"""

from typing import Any

from llavamed.config.sources import LlavaJson
from llavamed.data.record import Record
from llavamed.data.sources.json_rows import JsonFile
from llavamed.data.sources.records import dialogue
from llavamed.storage.location import locate


class LlavaJsonSource(JsonFile):
    """Reads the file item by item, so that its size does not matter."""

    def __init__(self, read: LlavaJson) -> None:
        super().__init__(locate(read.path), locate(read.image_folder))
        self._licence = read.licence

    def parse(self, row: dict[str, Any]) -> Record:
        """Understand one item. Raises: SampleError, for a missing key or an unknown role."""
        return dialogue(row, None, id="", licence=self._licence)
