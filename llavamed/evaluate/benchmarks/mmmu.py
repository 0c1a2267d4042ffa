"""MMMU, Health & Medicine: college questions in five subjects, with up to seven pictures each.

The Parquet files of Hugging Face, one folder per subject or all in one. `question` and the options,
a Python list written as text, name their pictures as `<image 1>` to `<image 7>`; the pictures are
columns of the same names. The answers of the split `test` are not public.
"""

from collections.abc import Iterator
from functools import cached_property
from string import ascii_uppercase
from typing import Any

from llavamed.config.uri import split_options
from llavamed.data.sources.archives import open_folder
from llavamed.data.sources.parquet import ParquetFiles
from llavamed.data.sources.pictures import embedded_picture, reference_of
from llavamed.data.sources.records import require
from llavamed.errors import DataError, SampleError
from llavamed.evaluate.benchmarks.benchmark import (
    BY_LETTER,
    Benchmark,
    lettered_question,
    open_question,
    place_pictures,
    read_list,
)
from llavamed.evaluate.benchmarks.hub_copies import files_of_split
from llavamed.evaluate.questions import Question
from llavamed.storage.location import Location

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
        self._path, self._split = path, split

    @cached_property
    def _files(self) -> ParquetFiles:
        path: str | list[Location] = self._path
        if not _is_parquet(self._path):
            folder = open_folder(self._path)
            path = files_of_split(folder, self._split, BENCHMARK.splits, SUBJECTS)
            if not path:
                raise DataError(
                    f"path={folder}: has no Parquet file of {self._split}, and no folder of a "
                    f"subject such as {SUBJECTS[0]}; check the path"
                )
        return ParquetFiles(
            path, images=(), required=_NEEDED, optional=(*_OTHERS, *_PICTURES[1:]), listed=("id",)
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the places of all questions. Raises: DataError."""
        for row in self._files.rows():
            subject = _subject_of(str(row["id"]), row["file"])
            if subject and not self._is_of_another_split(str(row["id"])):
                yield {**row, "id": f"mmmu-{row['id']}", "subject": subject}

    def _is_of_another_split(self, id_: str) -> bool:
        return id_.split("_")[0] in {*BENCHMARK.splits, "test"} - {self._split}

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row. Raises: SampleError."""
        values, _ = self._files.read(row)
        id_, text, answer = require(values, "id", "question", "answer")
        listed = read_list(values["options"], "options")
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


def _is_published(path: str) -> bool:
    """Return whether the Parquet files of a path have the columns of the published ones."""
    return _is_parquet(path) and "image_1" in ParquetFiles(path, images=(), required=()).columns()


def _is_parquet(path: str) -> bool:
    return split_options(path)[0].lower().endswith(".parquet")


def _subject_of(id_: str, file: str) -> str | None:
    """Return the subject that an id or else a file names; None if it is none of the five."""
    by_id = next((each for each in SUBJECTS if f"_{each}_" in id_), None)
    return by_id or next((each for each in SUBJECTS if each in file), None)


def _answers(answer: str) -> tuple[str, ...]:
    """Return the answers that are right: one, or those of a list written as text."""
    return tuple(read_list(answer, "answer")) if answer.startswith("[") else (answer,)


BENCHMARK = Benchmark(
    name="mmmu-health",
    version=1,
    splits=("validation", "dev"),
    open=MmmuItems,
    data=f"a folder with {', '.join(SUBJECTS)}, each with validation-*.parquet, or with these "
    "files of all subjects",
    licence="Apache-2.0",
    categories=SUBJECTS,
    choice_instruction=BY_LETTER,
    is_published=_is_published,
)
