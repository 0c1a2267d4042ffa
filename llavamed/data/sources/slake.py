"""Read SLAKE as its authors publish it: `train.json`, `validate.json`, `test.json`, folder `imgs`.

Hugging Face calls the second file `validation.json` and packs the images as `imgs.zip`.

A row: `{"qid", "img_name", "question", "answer", "q_lang": "en"|"zh", "answer_type":
"OPEN"|"CLOSED", "content_type", "modality", "location", ...}`. A record's domain is the modality
(CT, MRI, X-Ray), which LLaVA-Med's datasets are divided by, and not the body part.
"""

from collections.abc import Iterator
from typing import Any

from llavamed.config.sources import Slake
from llavamed.data.record import Record
from llavamed.data.sources.json_rows import JsonFolder
from llavamed.data.sources.records import question, read_answer_type, require

LICENCE = "CC-BY-4.0"
_FILES = {
    "train": ("train.json",),
    "validation": ("validate.json", "validation.json"),
    "test": ("test.json",),
}
_LANGUAGES = {"en", "zh"}


class SlakeSource(JsonFolder):
    """Questions about radiology images, one per sample."""

    def __init__(self, read: Slake) -> None:
        super().__init__(read.path, _FILES[read.split], ("imgs",))
        self._left_out = _LANGUAGES - set(read.languages)
        self._split = read.split

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the split in the chosen languages.

        Raises:
            DataError: The file is absent or damaged, or the images are still packed.
        """
        for row in super().rows():
            if row.get("q_lang") not in self._left_out:
                yield {**row, "id": f"slake-{self._split}-{row.get('qid')}"}

    def parse(self, row: dict[str, Any]) -> Record:
        """Interpret one row.

        Raises:
            SampleError: A key is missing or the answer type is unknown.
        """
        keys = ("qid", "q_lang", "img_name", "question", "answer")
        _, _, image, text, answer = require(row, *keys)
        return question(
            row,
            image=image,
            text=text,
            answer=answer,
            answer_type=read_answer_type(row),
            question_type=str(row.get("content_type", "")),
            domain=str(row.get("modality", "")),
            licence=LICENCE,
        )
