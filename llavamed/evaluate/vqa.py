"""Exact-token scores for visual question answering.

Texts are compared as whole tokens, never as substrings: a search for "no" inside the text also
finds it in "normal", "know" and "diagnosis", and so turns the best answers wrong and empty ones
right. A closed question is right or wrong; an open one has a recall between 0 and 1.

What tokens cannot see stays unseen: a synonym ("CXR" for "chest x-ray"), a sentence that says yes
in other words, a hedge that names both options. The rules are made for languages that put spaces
between words. Whoever changes a rule changes `SCORER`: numbers of two scorers do not compare.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from llavamed.errors import DataError

SCORER = "exact-token/1"
"""Name and version of these rules; it belongs beside every number they give."""

_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"}
_NUMBERS |= {"five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = frozenset({"a", "an", "the"})
_YES_NO = frozenset({"yes", "no"})
_NEGATIONS = frozenset({"neither", "no", "non", "nor", "not", "without"})
_APOSTROPHE = re.compile("['\u2019\u02bc]")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TOKEN = re.compile(r"[^\W_]+(?:(?<=\d)\.(?=\d)[^\W_]+)*")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered question. `image` is what the page shows (PNG) and may be empty."""

    id: str
    image: bytes
    question: str
    reference: str
    prediction: str
    answer_type: str
    question_type: str
    domain: str


@dataclass(frozen=True, slots=True)
class Measure:
    """A mean over the questions of one answer type."""

    name: str
    """Its name in `scores.json` and MLflow."""
    title: str
    """Its name for people."""
    answer_type: str


MEASURES = (
    Measure("closed_accuracy", "Closed accuracy", "CLOSED"),
    Measure("open_recall", "Open recall", "OPEN"),
)
"""Every measure: files, MLflow, tables and the page are made from this list."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over questions, from 0 to 1, by the names of `MEASURES`."""

    means: Mapping[str, float | None]
    """None where there is no such question."""
    counts: Mapping[str, int]
    """Number of questions that a mean is over."""


def normalize(text: str) -> list[str]:
    """Split a text into the tokens that the scores compare.

    - Unicode NFKC and lower case: a ligature, a full-width digit or a capital is no other word.
    - An apostrophe vanishes, because annotators write both "Crohn's" and "Crohns".
    - A point between digits stays ("2.5" is not "2" and "5"); a comma that groups thousands goes.
    - Every other sign separates, hyphens too: "T2-weighted" and "T2 weighted" are the same, and
      "left-sided" contains "left".
    - "none" and "zero" to "ten" become digits: counts are written both ways.
    - An article goes where another token follows. The last one stays, because there it is a
      letter: option "A", "hepatitis A".
    """
    text = _APOSTROPHE.sub("", unicodedata.normalize("NFKC", text).lower())
    tokens = _TOKEN.findall(_THOUSANDS_COMMA.sub("", text))
    last = len(tokens) - 1
    return [
        _NUMBERS.get(token, token)
        for position, token in enumerate(tokens)
        if token not in _ARTICLES or position == last
    ]


def is_closed_correct(prediction: str, reference: str) -> bool:
    """Say whether a prediction gives the reference's answer to a closed question.

    Against "yes" or "no", the first yes or no of the prediction decides: "Yes, there is no
    effusion" is a yes, "There is no abnormality" a no, and a sentence with neither is wrong.

    Against any other reference ("left", "axial", "T2-weighted"), its tokens must occur side by
    side and in order. An occurrence right behind a negation ("not left", "without contrast")
    says the opposite and does not count. Only that one token before is read: a wider window
    would need a grammar and would reject "No, it is on the left". The price is that a bare
    "No, left" does not count for "left", and that "left or right" counts for both.
    """
    said, wanted = normalize(prediction), normalize(reference)
    if not wanted:  # a reference of signs only; nothing but the like of it can be right
        return not said
    if len(wanted) == 1 and wanted[0] in _YES_NO:
        return next((token for token in said if token in _YES_NO), None) == wanted[0]
    return any(
        said[start : start + len(wanted)] == wanted
        and (start == 0 or said[start - 1] not in _NEGATIONS)
        for start in range(len(said) - len(wanted) + 1)
    )


def open_recall(prediction: str, reference: str) -> float:
    """Share of the reference's tokens that the prediction holds, in any order.

    A token counts at most as often as the reference has it, so saying it again gains nothing.
    """
    said, wanted = Counter(normalize(prediction)), Counter(normalize(reference))
    if not wanted:
        return float(not said)
    return (said & wanted).total() / wanted.total()


def score_answer(answer: Answer) -> float:
    """Score one answer by the rule of its type, from 0 to 1.

    Raises:
        DataError: The answer type is neither OPEN nor CLOSED, so that no rule applies.
    """
    match answer.answer_type:
        case "CLOSED":
            return float(is_closed_correct(answer.prediction, answer.reference))
        case "OPEN":
            return open_recall(answer.prediction, answer.reference)
    raise DataError(
        f"answer_type={answer.answer_type!r} of {answer.id!r}: must be OPEN or CLOSED to be "
        "scored; evaluate on a dataset whose source labels its questions"
    )


def score(answers: Iterable[Answer]) -> Scores:
    """Average over questions, closed and open apart; every question weighs the same."""
    values: dict[str, list[float]] = {measure.answer_type: [] for measure in MEASURES}
    for answer in answers:
        value = score_answer(answer)
        values[answer.answer_type].append(value)
    of_measure = {measure.name: values[measure.answer_type] for measure in MEASURES}
    return Scores(
        means={name: fmean(given) if given else None for name, given in of_measure.items()},
        counts={name: len(given) for name, given in of_measure.items()},
    )


def score_by(
    answers: Iterable[Answer], key: Literal["question_type", "domain"]
) -> dict[str, Scores]:
    """Score each group of answers that share `key`, groups in alphabetical order."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[getattr(answer, key)].append(answer)
    return {name: score(groups[name]) for name in sorted(groups)}


def majority_answer(references: Iterable[str]) -> str | None:
    """Find the commonest of the references to closed questions; None where there is none.

    Give it the training references where they are at hand: those of the questions to be
    answered make a slightly stronger control. Of equally common ones the alphabet picks.
    """
    counts = Counter(" ".join(normalize(reference)) for reference in references)
    return min(counts, key=lambda text: (-counts[text], text), default=None)


def majority_control(answers: Iterable[Answer], majority: str) -> list[Answer]:
    """Answer every closed question with `majority`: what a model gets that reads nothing."""
    return [
        replace(answer, prediction=majority) for answer in answers if answer.answer_type == "CLOSED"
    ]
