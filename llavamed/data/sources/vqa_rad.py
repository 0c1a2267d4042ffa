"""Read VQA-RAD in either of the two forms in which its authors publish it.

- `trainset.json`, `testset.json` and a folder `images`.
- `VQA_RAD Dataset Public.json`, with both splits, and a folder `VQA_RAD Image Folder`. The phrase
  type of a test question begins with `test_`.

A row: `{"qid", "image_name", "question", "answer", "answer_type": "OPEN"|"CLOSED",
"question_type", "phrase_type", "image_organ"}`. Two rows have a space after the answer type, and
some answers are numbers.
"""

from collections.abc import Iterator
from typing import Any

from llavamed.config.sources import VqaRad
from llavamed.data.record import Record
from llavamed.data.sources.json_rows import JsonFolder
from llavamed.data.sources.records import question, read_answer_type, require

LICENCE = "CC0-1.0"
_FILE_OF_BOTH, _IMAGES_OF_BOTH = "VQA_RAD Dataset Public.json", "VQA_RAD Image Folder"
_TEST = "test_"


class VqaRadSource(JsonFolder):
    """Questions about radiology images, one per sample."""

    def __init__(self, read: VqaRad) -> None:
        files = (f"{read.split}set.json", _FILE_OF_BOTH)
        super().__init__(read.path, files, ("images", _IMAGES_OF_BOTH))
        self._left_out = set(VqaRad.model_fields["phrase_types"].default) - set(read.phrase_types)
        self._split = read.split

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the split with the chosen phrase types. Raises: DataError."""
        has_both = self.file.name != f"{self._split}set.json"
        for row in super().rows():
            kind = str(row.get("phrase_type", "")).strip()
            if has_both and kind.startswith(_TEST) != (self._split == "test"):
                continue
            if kind.removeprefix(_TEST) not in self._left_out:
                yield {**row, "id": f"vqa-rad-{self._split}-{row.get('qid')}"}

    def parse(self, row: dict[str, Any]) -> Record:
        """Interpret one row.

        Raises:
            SampleError: A key is missing or the answer type is unknown.
        """
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
