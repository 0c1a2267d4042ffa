"""VQA-RAD as its authors publish it: `trainset.json`, `testset.json` and a folder `images`.

A row: `{"qid", "image_name", "question", "answer", "answer_type": "OPEN"|"CLOSED",
"question_type", "phrase_type", "image_organ"}`. Two rows spell the answer type with a space behind
it, and some answers are numbers.
"""

from collections.abc import Iterator
from typing import Any

from llavamed.config.sources import VqaRad
from llavamed.data.record import Record
from llavamed.data.sources.json_rows import JsonFile
from llavamed.data.sources.records import question, read_answer_type, require
from llavamed.storage.location import locate

LICENCE = "CC0-1.0"


class VqaRadSource(JsonFile):
    """Questions about radiology images, one a sample."""

    def __init__(self, read: VqaRad) -> None:
        folder = locate(read.path)
        super().__init__(folder / f"{read.split}set.json", folder / "images")
        self._left_out = set(VqaRad.model_fields["phrase_types"].default) - set(read.phrase_types)
        self._split = read.split

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the split, of the chosen phrase types. Raises: DataError."""
        for row in super().rows():
            if row.get("phrase_type") not in self._left_out:
                yield {**row, "id": f"vqa-rad-{self._split}-{row.get('qid')}"}

    def parse(self, row: dict[str, Any]) -> Record:
        """Understand one row. Raises: SampleError, for a missing key or an unknown answer type."""
        _, image, text, answer = require(row, "qid", "image_name", "question", "answer")
        return question(
            row,
            image=image,
            text=text,
            answer=answer,
            answer_type=read_answer_type(row),
            question_type=str(row.get("question_type", "")),
            domain=str(row.get("image_organ", "")),
            licence=LICENCE,
        )
