"""Probing pairs: two questions that are right only together.

- The same finding asked as present and as absent: whoever says yes to both has not looked.
- A finding that is there and one that is not, on the same picture, each from a question of the set:
  nothing is claimed of a picture that its annotators did not say.

Source: the idea of ProbMed (arXiv 2405.20421) and POPE (arXiv 2305.10355).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llavamed.evaluate.questions import Question, Questions
from llavamed.evaluate.scorers.yes_no import polarity
from llavamed.processor.turns import Turn

_ARTICLE = r"(?:(?:a|an|any|the|evidence of|signs? of)\s+)*"
_PRESENCE = re.compile(
    rf"\s*(?P<verb>is|are)\s+there\s+{_ARTICLE}(?P<finding>[^,;?]+?)"
    rf"(?P<place>\s+(?:in|on|at|within|of|near|around|present in|seen in)\s+[^?]*)?\s*\?\s*",
    re.IGNORECASE,
)
_LOADED = re.compile(r"\b(?:no|not|or|than|more|less|absent|absence|other|only)\b", re.IGNORECASE)
_PRESENT_WORDS = re.compile(r"\s+(?:present|visible|seen|shown|identified)$", re.IGNORECASE)


@dataclass(frozen=True)
class ProbingPairs:
    """The probing pairs that can be made of a set of questions, chunk by chunk."""

    questions: Questions

    @property
    def num_chunks(self) -> int:
        """Return the number of chunks."""
        return self.questions.num_chunks

    def read(self, chunk: int, *, with_pictures: bool = True) -> list[Question]:
        """Read the pairs of a chunk."""
        asked = self.questions.read(chunk, with_pictures=with_pictures)
        return [*_flipped(asked), *_there_and_not_there(asked)]


def negate(question: str) -> str | None:
    """Turn "Is there X?" into "Is X absent?"; return None for other questions.

    Only plain questions are turned: "Is there ...?" and "Are there ...?" in English, about one
    finding, without a word that a turn would make ambiguous.
    """
    found = _PRESENCE.fullmatch(question)
    if found is None or _LOADED.search(question):
        return None
    finding = _PRESENT_WORDS.sub("", found["finding"].strip())
    if not finding:
        return None
    return f"{found['verb'].capitalize()} {finding}{found['place'] or ''} absent?"


def _flipped(questions: Sequence[Question]) -> list[Question]:
    pairs = []
    for question in questions:
        is_there, turned = _is_there(question), negate(question.question)
        if is_there is None or turned is None:
            continue
        pair = f"{question.id}~absent"
        *before, last = question.turns
        words = last.text.replace(question.question, turned)
        if words == last.text:
            continue
        pairs += [
            replace(question, id=f"{pair}-0", pair=pair),
            replace(
                question,
                id=f"{pair}-1",
                pair=pair,
                question=turned,
                references=("no" if is_there else "yes",),
                turns=(*before, Turn(last.role, words)),
            ),
        ]
    return pairs


def _there_and_not_there(questions: Sequence[Question]) -> list[Question]:
    """Pair each finding that is present with one that is absent, on the same image."""
    pairs: list[Question] = []
    absent: dict[tuple[str, ...], list[Question]] = {}
    for question in questions:
        if _is_there(question) is False:
            absent.setdefault(_pictures_of(question), []).append(question)
    for question in questions:
        others = absent.get(_pictures_of(question), [])
        if _is_there(question) and others:
            other = others.pop(0)
            pair = f"{question.id}~{other.id}"
            pairs += [
                replace(question, id=f"{pair}-0", pair=pair),
                replace(other, id=f"{pair}-1", pair=pair),
            ]
    return pairs


def _is_there(question: Question) -> bool | None:
    """Return whether the finding that a question asks for is present; None for other questions."""
    if question.options is not None or _PRESENCE.fullmatch(question.question) is None:
        return None
    return polarity(question.references[0])


def _pictures_of(question: Question) -> tuple[str, ...]:
    return question.images or tuple(picture.sha256 for picture in question.pictures)
