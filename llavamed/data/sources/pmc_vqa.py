"""Read PMC-VQA as its authors publish it: a CSV file of multiple-choice questions, and figures.

The columns of the first version are `Figure_path, Question, Answer, Choice A` to `Choice D,
Answer_label`, with the letter in the last. The second version has `index, Figure_path, Caption,
Question, Choice A` to `Choice D, Answer, split`, with the letter in `Answer`. Choices may begin
with their letter.

The question lists the choices and the answer is only the letter: a single token, so that its score
does not depend on the wording of a choice.
"""

import csv
import string
from collections.abc import Iterator
from typing import Any

from llavamed.config.sources import PmcVqa
from llavamed.data.record import Record
from llavamed.data.sources.file_of_rows import FileOfRows
from llavamed.data.sources.files import damaged
from llavamed.data.sources.records import question, require
from llavamed.data.sources.text_files import open_text
from llavamed.errors import SampleError
from llavamed.storage.location import locate

LICENCE = "CC-BY-SA"
_LETTERS = "ABCD"
_COLUMNS = ("Figure_path", "Question", *(f"Choice {letter}" for letter in _LETTERS))
_BLANKS = string.whitespace + "'\"\u00a0\u200a"


class PmcVqaFile(FileOfRows):
    """Multiple-choice questions about figures, one per sample."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the file, numbered from 0.

        Raises:
            DataError: The file is absent or has another format, or the images are still packed.
        """
        _ = self._images  # fail before the first row if the archive cannot be read
        prefix = f"pmc-vqa-{self._file.name.removesuffix('.csv')}"
        with open_text(self._file) as text:
            rows = csv.DictReader(text.stream, restkey="more", strict=True)
            try:
                there = rows.fieldnames or []
                if missing := [column for column in _COLUMNS if column not in there]:
                    raise damaged(self._file, "PMC-VQA", f"no column {', '.join(missing)}")
                for number, row in enumerate(rows):
                    yield {**row, "id": f"{prefix}-{number}"}
            except csv.Error as error:
                raise damaged(self._file, "CSV", error) from error

    def parse(self, row: dict[str, Any]) -> Record:
        """Interpret one row.

        Raises:
            SampleError: `missing_key`, `malformed_row` or `unknown_answer`.
        """
        text, choices = read_choices(row)
        if "more" in row:
            raise SampleError("malformed_row", f"{len(row['more'])} fields more than columns")
        label = row.get("Answer_label", row.get("Answer"))
        letter = str(label).strip(_BLANKS)
        if len(letter) != 1 or letter not in _LETTERS:
            raise SampleError("unknown_answer", f"the answer's letter is {label!r}, not A to D")
        return question(
            row,
            image=row["Figure_path"],
            text="\n".join([text, *(f"{name}: {words}" for name, words in choices.items())]),
            answer=letter,
            answer_type="CLOSED",
            licence=LICENCE,
        )


class PmcVqaSource(PmcVqaFile):
    """The file and the images that a config names."""

    def __init__(self, read: PmcVqa) -> None:
        super().__init__(locate(read.path), locate(read.image_folder))


def read_choices(row: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the words of a row's question, and its choices by their letters.

    Raises:
        SampleError: `missing_key`.
    """
    _, text, *choices = require(row, *_COLUMNS)
    words = {
        letter: choice.strip(_BLANKS).removeprefix(f"{letter}:").strip(_BLANKS)
        for letter, choice in zip(_LETTERS, choices, strict=True)
    }
    if empty := [letter for letter, text_of in words.items() if not text_of]:
        raise SampleError("missing_key", f"no text of choice {empty[0]}")
    return text.strip(_BLANKS), words
