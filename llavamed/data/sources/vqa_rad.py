"""VQA-RAD as its authors publish it, in either of two forms.

- `trainset.json`, `testset.json` and a folder `images`.
- On their site: `VQA_RAD Dataset Public.json` and a folder `VQA_RAD Image Folder`, both splits in
  one file, where the phrase type of a test question begins with `test_`.

A row: `{"qid", "image_name", "question", "answer", "answer_type": "OPEN"|"CLOSED",
"question_type", "phrase_type", "image_organ"}`. Two rows spell the answer type with a space behind
it, and some answers are numbers.
"""

from collections.abc import Iterator
from typing import Any

from llavamed.config.sources import VqaRad
from llavamed.data.record import Record
from llavamed.data.sources.json_rows import JsonFolder
from llavamed.data.sources.records import question, read_answer_type, require
from llavamed.storage.location import locate

LICENCE = "CC0-1.0"
_FILE_OF_BOTH, _IMAGES_OF_BOTH = "VQA_RAD Dataset Public.json", "VQA_RAD Image Folder"
_TEST = "test_"


class VqaRadSource(JsonFolder):
    """Questions about radiology images, one a sample."""

    def __init__(self, read: VqaRad) -> None:
        files = (f"{read.split}set.json", _FILE_OF_BOTH)
        super().__init__(locate(read.path), files, ("images", _IMAGES_OF_BOTH))
        self._left_out = set(VqaRad.model_fields["phrase_types"].default) - set(read.phrase_types)
        self._split = read.split

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the split, of the chosen phrase types. Raises: DataError."""
        has_both = self.file.name != f"{self._split}set.json"
        for row in super().rows():
            kind = str(row.get("phrase_type", "")).strip()
            if has_both and kind.startswith(_TEST) != (self._split == "test"):
                continue
            if kind.removeprefix(_TEST) not in self._left_out:
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
