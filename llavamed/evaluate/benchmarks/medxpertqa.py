"""MedXpertQA MM: examination questions with five options and one or more pictures.

A JSON line is `{"id", "question", "options", "label", "images", "medical_task", "body_system",
"question_type"}`. The options are also part of the question, after "Answer Choices:". They are a
mapping of letters, or a list of `{"letter", "content"}`.
"""

from collections.abc import Iterator
from typing import Any

from llavamed.data.sources.json_rows import JsonFolder
from llavamed.data.sources.records import require
from llavamed.errors import SampleError
from llavamed.evaluate.benchmarks.benchmark import (
    BY_LETTER,
    CHOICES,
    Benchmark,
    lettered_question,
    read_options,
)
from llavamed.evaluate.questions import Question


class MedXpertQaItems(JsonFolder):
    """Questions of one split."""

    def __init__(self, path: str, split: str) -> None:
        super().__init__(path, (f"MM/{split}.jsonl",), ("images",))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows. Raises: DataError."""
        for row in super().rows():
            yield {**row, "id": f"medxpertqa-{row.get('id')}"}

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row. Raises: SampleError."""
        text, letter = require(row, "question", "label")
        images = row.get("images")
        if not isinstance(images, list) or not images:
            raise SampleError("missing_image", f"images is {images!r}, not a list of names")
        return lettered_question(
            row["id"],
            text.partition(CHOICES)[0],
            read_options(row.get("options")),
            letter.strip(),
            images=tuple(map(str, images)),
            question_type=str(row.get("question_type") or ""),
            organ=str(row.get("body_system") or ""),
            domain=str(row.get("medical_task") or ""),
            language="en",
        )


BENCHMARK = Benchmark(
    name="medxpertqa-mm",
    version=1,
    splits=("test", "dev"),
    open=MedXpertQaItems,
    data="a folder with MM/test.jsonl and images, or with Parquet files of MM",
    licence="MIT",
    categories=("MM",),
    choice_instruction=BY_LETTER,
    is_on_hub=True,
)
