"""OmniMedVQA: questions with two to four options about images of 73 classification data sets.

Only the open-access part can be had: a JSON file for each data set below `QA_information`, whose
rows are `{"dataset", "question_id", "question_type", "question", "gt_answer", "image_path",
"option_A" to "option_D", "modality_type"}`. The answer is the text of an option.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from llavamed.data.sources.archives import open_folder
from llavamed.data.sources.files import find_below, load_image_file
from llavamed.data.sources.json_rows import stream_json
from llavamed.data.sources.records import require
from llavamed.errors import SampleError
from llavamed.evaluate.benchmarks.benchmark import BY_LETTER, Benchmark, lettered_question
from llavamed.evaluate.questions import Question
from llavamed.storage.location import Location

_LETTERS = "ABCD"
_FOLDERS = {"open-access": "Open-access", "restricted-access": "Restricted-access"}


class OmniMedVqaItems:
    """Questions of all data sets of one part."""

    def __init__(self, path: str, part: str) -> None:
        self._path, self._part = path, _FOLDERS[part]

    @cached_property
    def _folder(self) -> Location:
        return open_folder(self._path)

    @cached_property
    def _files(self) -> list[Location]:
        """The files of questions. Raises: DataError."""
        return find_below(self._folder / "QA_information" / self._part, ".json")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of every file. Raises: DataError."""
        for file in self._files:
            for row in stream_json(file):
                dataset = row.get("dataset") or file.name.removesuffix(".json")
                yield {**row, "id": f"{dataset}-{row.get('question_id')}", "dataset": dataset}

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row. Raises: SampleError."""
        keys = ("question_id", "question", "gt_answer", "image_path")
        _, text, answer, image = require(row, *keys)
        options = {
            letter: str(row[f"option_{letter}"]).strip()
            for letter in _LETTERS
            if row.get(f"option_{letter}") not in (None, "")
        }
        right = [letter for letter, words in options.items() if words == answer.strip()]
        if len(right) != 1:
            raise SampleError(
                "unknown_answer", f"{answer!r} is the text of {len(right)} options, not of one"
            )
        return lettered_question(
            row["id"],
            text,
            options,
            right[0],
            images=(image,),
            question_type=str(row.get("question_type") or ""),
            modality=str(row.get("modality_type") or ""),
            domain=str(row["dataset"]),
            language="en",
        )

    def load_image(self, reference: str) -> bytes:
        """Read a picture. Raises: SampleError (`missing_image`, `unsafe_path`)."""
        return load_image_file(self._folder, reference)


BENCHMARK = Benchmark(
    name="omnimedvqa",
    version=1,
    splits=("open-access", "restricted-access"),
    open=OmniMedVqaItems,
    data="a folder with QA_information and Images, or OmniMedVQA.zip",
    licence="of each source",
    choice_instruction=BY_LETTER,
)
