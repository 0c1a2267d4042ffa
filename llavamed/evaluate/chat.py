"""Read questions about figures, with a reference answer and the answer of a model, for a judge.

The files have the form of LLaVA-Med's chat evaluation, JSON lines of {question_id, image, text,
gpt4_answer, fig_caption, in_text_mention, domain, type}, with the answers of a model in a second
file of {question_id, text}, or as `llavamed evaluate answer` writes them. Plain names are read too:
`id`, `question`, `reference`, `caption`, `mentions`, and `prediction` for an answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llavamed.errors import DataError
from llavamed.evaluate.answers import read_answers
from llavamed.evaluate.results import find_answers
from llavamed.evaluate.scorers.predictions import note_id, read_rows
from llavamed.storage.location import Location

_IMAGE_MARK = "<image>"


@dataclass(frozen=True, slots=True)
class ChatItem:
    """A question about a figure with two answers to it."""

    id: str
    image: str
    """Name of the image; questions of one image form a cluster."""
    question: str
    reference: str
    candidate: str
    caption: str
    mentions: tuple[str, ...]
    """Sentences of the article that refer to the figure."""
    domain: str
    kind: str
    """Such as `conversation` or `detailed_description`."""


def read_chat(questions: Location, answers: Location) -> list[ChatItem]:
    """Read questions with the answers of a model, joined by id and never by position.

    Raises:
        DataError: A line or field is invalid, an id occurs twice, a question has no answer, or
            an answer has no question.
    """
    asked = {id_: (row, place) for id_, row, place in _rows(questions)}
    said = _answers(answers)
    if missing := [id_ for id_ in asked if id_ not in said]:
        raise DataError(
            f"{answers}: lacks answers to {len(missing)} of {len(asked)} questions, the first is "
            f"{missing[0]!r}; answer every question of {questions}"
        )
    if foreign := [id_ for id_ in said if id_ not in asked]:
        raise DataError(
            f"{answers}: has answers to {len(foreign)} questions that are not in {questions}, the "
            f"first is {foreign[0]!r}; compare files of the same questions"
        )
    return [
        ChatItem(
            id=id_,
            image=str(row.get("image") or ""),
            question=_text(row, place, "question", "text").replace(_IMAGE_MARK, "").strip(),
            reference=_text(row, place, "reference", "gpt4_answer"),
            candidate=said[id_],
            caption=_text(row, place, "caption", "fig_caption"),
            mentions=_mentions(row.get("mentions", row.get("in_text_mention")), place),
            domain=domain_of(row.get("domain"), place),
            kind=str(row.get("type") or ""),
        )
        for id_, (row, place) in asked.items()
    ]


def _answers(place: Location) -> dict[str, str]:
    """Return the answers of a model by id, from JSON lines or from `answers.parquet`."""
    table = find_answers(str(place))
    if table is None:
        return {id_: _text(row, line, "prediction", "text") for id_, row, line in _rows(place)}
    answers = next(iter(read_answers(table).values()))
    return {answer.id: answer.prediction for answer in answers}


def _rows(file: Location) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the id, the object and the place of every object of a file."""
    seen: dict[str, str] = {}
    for place, row in read_rows(file):
        id_ = row.get("id", row.get("question_id"))
        if not isinstance(id_, str | int) or isinstance(id_, bool) or id_ == "":
            raise DataError(f"{place}: id={id_!r} is not text or a number; write a name")
        note_id(id_, place, seen, name=str(file), kind="question")
        yield str(id_), row, place
    if not seen:
        raise DataError(f"{file}: holds no object; write one per line")


def _text(row: dict[str, Any], place: str, *names: str) -> str:
    """Return the first of these fields that is present."""
    name = next((each for each in names if each in row), None)
    if name is None:
        raise DataError(f"{place}: lacks {' or '.join(names)}; add it to the object")
    if not isinstance(row[name], str):
        raise DataError(f"{place}: {name}={row[name]!r} is not text; write it in quotes")
    return row[name]


def _mentions(given: Any, place: str) -> tuple[str, ...]:
    """Return the sentences, which may be texts or objects with their tokens."""
    if given is None:
        return ()
    if isinstance(given, str):
        return (given,)
    if isinstance(given, list) and all(isinstance(each, str | dict) for each in given):
        found = [each if isinstance(each, str) else each.get("tokens", "") for each in given]
        return tuple(" ".join(map(str, each)) if isinstance(each, list) else each for each in found)
    raise DataError(f"{place}: mentions={str(given)[:60]} is not a list of texts; correct it")


def domain_of(given: Any, place: str) -> str:
    """Return the name of a domain; of several that are marked, the first.

    Raises:
        DataError: It is neither a name nor a mapping of names to true or false.
    """
    if given is None or isinstance(given, str):
        return given or ""
    if isinstance(given, dict):
        return next((str(name) for name, is_so in given.items() if is_so is True), "")
    raise DataError(f"{place}: domain={str(given)[:60]} is not a name; write one")
