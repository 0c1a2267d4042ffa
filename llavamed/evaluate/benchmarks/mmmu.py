"""MMMU, Health & Medicine: college questions in five subjects, with up to seven pictures each.

The Parquet files of Hugging Face, one folder per subject. `question` and the options, a Python list
written as text, name their pictures as `<image 1>` to `<image 7>`; the pictures are columns of the
same names. The answers of the split `test` are not public.
"""

import ast
from collections.abc import Iterator
from string import ascii_uppercase
from typing import Any

from llavamed.data.sources.parquet import ParquetFiles
from llavamed.data.sources.pictures import embedded_picture, reference_of
from llavamed.data.sources.records import require
from llavamed.errors import SampleError
from llavamed.evaluate.benchmarks.benchmark import (
    BY_LETTER,
    Benchmark,
    lettered_question,
    open_question,
    place_pictures,
)
from llavamed.evaluate.questions import Question

SUBJECTS = (
    *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
    *("Pharmacy", "Public_Health"),
)
_PICTURES = tuple(f"image_{number}" for number in range(1, 8))
_NEEDED = (("id",), ("question",), ("options",), ("answer",), ("image_1",))
_OTHERS = ("question_type", "subfield", "img_type", "topic_difficulty")


class MmmuItems:
    """Questions of one split of the five subjects."""

    def __init__(self, path: str, split: str) -> None:
        folder = path.rstrip("/")
        self._subjects = {
            subject: ParquetFiles(
                f"{folder}/{subject}/{split}-*.parquet",
                images=(),
                required=_NEEDED,
                optional=(*_OTHERS, *_PICTURES[1:]),
            )
            for subject in SUBJECTS
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the places of all questions. Raises: DataError."""
        for subject, files in self._subjects.items():
            for row in files.rows():
                yield {**row, "id": f"mmmu-{subject}-{row['id']}", "subject": subject}

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row. Raises: SampleError."""
        values, _ = self._subjects[row["subject"]].read(row)
        id_, text, answer = require(values, "id", "question", "answer")
        listed = _listed(values["options"], "options")
        (text, *listed), images = place_pictures(
            [text, *listed], lambda number: reference_of(values.get(f"image_{number}"))
        )
        options = dict(zip(ascii_uppercase, listed, strict=False))
        groups = {
            "question_type": str(values.get("subfield") or ""),
            "domain": row["subject"],
            "language": "en",
        }
        images = images or (reference_of(values["image_1"]),)
        if options:
            return lettered_question(id_, text, options, answer.strip(), images=images, **groups)
        return open_question(id_, text, _answers(answer), images=images, **groups)

    def load_image(self, reference: str) -> bytes:
        """Return the picture that a reference holds. Raises: SampleError (`missing_image`)."""
        picture = embedded_picture(reference)
        if picture is None:
            raise SampleError("missing_image", f"{reference!r} is a name, not a picture")
        return picture


def _listed(text: str, key: str) -> list[str]:
    """Return the texts of a Python list. Raises: SampleError (`unknown_answer`)."""
    try:
        listed = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise SampleError("unknown_answer", f"{key} is {text!r}, not a list") from error
    if not isinstance(listed, list) or len(listed) > len(ascii_uppercase):
        raise SampleError("unknown_answer", f"{key} is {text!r}, not a list")
    return [str(each) for each in listed]


def _answers(answer: str) -> tuple[str, ...]:
    """Return the answers that are right: one, or those of a list written as text."""
    return tuple(_listed(answer, "answer")) if answer.startswith("[") else (answer,)


BENCHMARK = Benchmark(
    name="mmmu-health",
    version=1,
    splits=("validation", "dev"),
    open=MmmuItems,
    data=f"a folder with {', '.join(SUBJECTS)}, each with validation-*.parquet",
    licence="Apache-2.0",
    categories=SUBJECTS,
    choice_instruction=BY_LETTER,
)
