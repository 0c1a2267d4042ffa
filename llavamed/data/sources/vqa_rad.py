"""VQA-RAD as its authors publish it: `trainset.json`, `testset.json` and a folder `images`.

A row: `{"qid", "image_name", "question", "answer", "answer_type": "OPEN"|"CLOSED",
"question_type", "phrase_type", "image_organ"}`. Two rows spell the answer type with a space behind
it, and some answers are numbers.
"""

import json
from collections.abc import Iterator
from typing import Any

from llavamed.config.datasets import VqaRad
from llavamed.data.sample import IMAGE_PLACEHOLDER, AnswerType, Record, Turn
from llavamed.data.sources import hash_file, load_image_file
from llavamed.errors import BadSample, DataError
from llavamed.storage import locate

_ANSWER_TYPES: dict[str, AnswerType] = {"OPEN": "OPEN", "CLOSED": "CLOSED"}
LICENCE = "CC0-1.0"


class VqaRadSource:
    """Questions about radiology images, one a sample."""

    def __init__(self, read: VqaRad) -> None:
        folder = locate(read.path)
        self._file = folder / f"{read.split}set.json"
        self._images = folder / "images"
        self._left_out = set(VqaRad.model_fields["phrase_types"].default) - set(read.phrase_types)
        self._split = read.split

    def count(self) -> int:
        """Questions of the chosen phrase types."""
        return sum(1 for _ in self.rows())

    def content_hash(self) -> str:
        """SHA-256 of the split's file."""
        return hash_file(self._file)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the split. Raises: DataError, when the file is absent or no JSON."""
        try:
            rows = json.loads(self._file.read_bytes())
        except FileNotFoundError as error:
            raise DataError(f"path={self._file}: no such file; check the dataset's path") from error
        except ValueError as error:
            raise DataError(
                f"path={self._file}: not JSON: {error}; download the file again"
            ) from error
        if not isinstance(rows, list):
            raise DataError(f"path={self._file}: not a JSON list; download the file again")
        for item in rows:
            row = item if isinstance(item, dict) else {"item": item}
            if row.get("phrase_type") not in self._left_out:
                yield row

    def parse(self, row: dict[str, Any]) -> Record:
        """Understand one row. Raises: BadSample, for a missing key or an unknown answer type."""
        keys = ("qid", "image_name", "question", "answer")
        missing = [key for key in keys if row.get(key) is None]
        if missing:
            raise BadSample("missing_key", f"no {', '.join(missing)}")
        answer_type = str(row.get("answer_type", "")).strip()
        if answer_type not in _ANSWER_TYPES:
            raise BadSample("unknown_answer_type", f"answer_type is {answer_type!r}")
        return Record(
            id=f"vqa-rad-{self._split}-{row['qid']}",
            images=(str(row["image_name"]),),
            turns=(
                Turn("user", f"{IMAGE_PLACEHOLDER}\n{str(row['question']).strip()}"),
                Turn("assistant", str(row["answer"]).strip()),
            ),
            domain=str(row.get("image_organ", "")),
            answer_type=_ANSWER_TYPES[answer_type],
            question_type=str(row.get("question_type", "")),
            licence=LICENCE,
        )

    def load_image(self, reference: str) -> bytes:
        """An image by its name below `images`."""
        return load_image_file(self._images, reference)
