"""Read any benchmark from a table of questions with their pictures, as kits and hubs copy it.

These are the tab-separated files of VLMEvalKit, and Parquet files as Hugging Face makes them, with
a picture, a question and its answer per row. What a table does not say, such as the kind of a
question or an organ, is left empty; a question that is answered by yes or no counts as closed.
"""

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain
from string import ascii_uppercase
from typing import Any

from llavamed.config.uri import split_options
from llavamed.data.record import AnswerType
from llavamed.data.sources.archives import open_packed
from llavamed.data.sources.json_rows import find_child
from llavamed.data.sources.parquet import ParquetFiles
from llavamed.data.sources.records import require, yes_or_no
from llavamed.errors import DataError, SampleError
from llavamed.evaluate.benchmarks.benchmark import (
    CHOICES,
    Benchmark,
    lettered_question,
    open_question,
    place_pictures,
    read_options,
)
from llavamed.evaluate.benchmarks.hub_copies import SPLITS
from llavamed.evaluate.benchmarks.tsv import TsvFiles
from llavamed.evaluate.questions import Question
from llavamed.storage.location import Location, locate

ENDINGS = (".tsv", ".parquet")
_GROUPS = {
    "question_type": ("question_type", "content_type", "category"),
    "organ": ("organ", "image_organ", "location", "body_system"),
    "modality": ("modality", "modality_type"),
    "domain": ("l2-category", "domain", "medical_task"),
}
_FILTERS = ("split", "category", "q_lang")
_OTHERS = ("hint", "answer_type", *_FILTERS, *chain(*_GROUPS.values()))
_PICTURES = ("image", "images", "image_path", "Figure_path")
_FOLDERS = ("images", "imgs", "figures")
_QUESTIONS = ("question", "Question")
_ANSWERS = ("answer", "gt_answer", "Answer_label", "label", "Answer")
"""Columns of the answer; one with the letter comes before one with the words."""
_LISTS = ("options", "choices")
_LETTERS = ascii_uppercase[:10]
_COLUMNS = {letter: (letter, f"option_{letter}", f"Choice {letter}") for letter in _LETTERS}
"""Columns of each option."""
_TYPES: Mapping[str, AnswerType] = {"OPEN": "OPEN", "CLOSED": "CLOSED"}


class TableItems:
    """The questions of a table.

    Args:
        path: URI of the data.
        folder: The folder of the data set, where `path` names that.
        files: Its Parquet files of the split.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        path: str,
        split: str,
        folder: Location | None = None,
        files: Sequence[Location] = (),
    ) -> None:
        self._benchmark, self._path, self._split = benchmark, path, split
        place = locate(path)
        folder = folder or Location(place.fs, place.path.rpartition("/")[0])
        self._part = SPLITS.get(re.split("[^a-z]", split)[0], "")
        self._table: TsvFiles | ParquetFiles = (
            TsvFiles(path)
            if split_options(path)[0].lower().endswith(".tsv")
            else ParquetFiles(
                files or path,
                images=_PICTURES,
                required=(_QUESTIONS, _ANSWERS),
                optional=(*_OTHERS, *_LISTS, *chain(*_COLUMNS.values())),
                listed=_FILTERS,
                image_folder=_picture_folder(folder),
            )
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the split. Raises: DataError."""
        name, only = f"{self._benchmark.name}-{self._split}", self._benchmark.categories
        for number, row in enumerate(self._table.rows()):
            self._check_name(posixpath.basename(row["file"]))
            if self._is_of_another_split({str(row.get("split"))}):
                continue
            if only and (row.get("category") or only[0]).replace(" ", "_") not in only:
                continue
            if (row.get("q_lang") or self._benchmark.language) != self._benchmark.language:
                continue
            yield {**row, "id": f"{name}-{row['id'] if row.get('index') else number}"}

    def _is_of_another_split(self, words: Set[str]) -> bool:
        named = {split for word, split in SPLITS.items() if word in words}
        return bool(named and self._part and self._part not in named)

    def _check_name(self, name: str) -> None:
        """Refuse a file that is of another split by its name. Raises: DataError."""
        if self._is_of_another_split(set(re.split("[^a-z]+", name.lower()))):
            raise DataError(
                f"path={self._path}: {name} is of another split than {self._split} by its name; "
                "name the right file, or the right --split"
            )

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row. Raises: SampleError."""
        values, pictures = self._table.read(row)
        if not pictures:
            raise SampleError("missing_image", "the row has no picture, and names no row that has")
        answers = _first(values, _ANSWERS)
        answers = answers if isinstance(answers, list) and answers else [answers]
        text, answer = require(
            {"question": _first(values, _QUESTIONS), "answer": answers[0]}, "question", "answer"
        )
        offered = _offered(values)
        if offered:
            text = text.partition(CHOICES)[0]
        if hint := str(values.get("hint") or "").strip():
            text = f"{hint}\n{text}"
        (text, *options), placed = place_pictures([text, *offered.values()], _numbered(pictures))
        images = placed or tuple(pictures)
        groups = {
            group: next((str(values[name]) for name in names if values.get(name)), "")
            for group, names in _GROUPS.items()
        }
        groups["language"] = str(values.get("q_lang") or self._benchmark.language)
        if offered:
            offered = dict(zip(offered, options, strict=True))
            right = _letter(answer, offered)
            return lettered_question(row["id"], text, offered, right, images=images, **groups)
        asked = open_question(
            row["id"], text, tuple(map(str.strip, map(str, answers))), images=images, **groups
        )
        given = str(values.get("answer_type") or "").strip().upper()
        return replace(asked, answer_type=_TYPES.get(given, yes_or_no(answer)))

    def load_image(self, reference: str) -> bytes:
        """Read a picture in the table or beside it. Raises: SampleError."""
        return self._table.load_image(reference)


def _picture_folder(folder: Location) -> Location:
    """Return the folder of pictures that are named in a table, or the one that holds the table.

    Raises:
        DataError: The folder of pictures is packed, and not as zip.
    """
    child = find_child(folder, _FOLDERS)
    pictures = open_packed(child)
    return folder if pictures is child and not child.exists() else pictures


def _first(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the first value that there is."""
    return next((values[name] for name in names if values.get(name) not in (None, "")), None)


def _offered(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the options by their letters, from a column each or from one of all.

    Raises:
        SampleError: `missing_key`, if the column of all holds something else.
    """
    found = {letter: _first(values, names) for letter, names in _COLUMNS.items()}
    given = next((values[name] for name in _LISTS if values.get(name)), None)
    if not any(str(text or "").strip() for text in found.values()) and given is not None:
        found = read_options(given)
    words = {letter: str(text or "").strip() for letter, text in found.items()}
    return {
        letter: text.removeprefix(f"{letter}:").strip() for letter, text in words.items() if text
    }


def _numbered(pictures: Sequence[str]) -> Callable[[int], str]:
    """Return what finds the picture of a number. It raises SampleError (`missing_image`)."""

    def picture_of(number: int) -> str:
        if not 0 < number <= len(pictures):
            raise SampleError("missing_image", f"<image {number}> of {len(pictures)} pictures")
        return pictures[number - 1]

    return picture_of


def _letter(answer: str, options: Mapping[str, str]) -> str:
    """Return the letter of the right option, which a table gives itself or by the option's text."""
    by_text = [letter for letter, words in options.items() if words == answer.strip()]
    is_text = answer.strip() not in options and len(by_text) == 1
    return by_text[0] if is_text else answer.strip()
