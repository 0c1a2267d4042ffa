"""Score the answers of a run to visual questions, by the rules of `exact_token`."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from llavamed.errors import DataError
from llavamed.evaluate.scorers import exact_token

SCORER = exact_token.NAME
"""Name and version of the rules; it belongs beside every number they give."""


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


def score_answer(answer: Answer) -> float:
    """Score one answer by the rule of its type, from 0 to 1.

    Raises:
        DataError: The answer type is neither OPEN nor CLOSED, so that no rule applies.
    """
    if answer.answer_type not in ("OPEN", "CLOSED"):
        raise DataError(
            f"answer_type={answer.answer_type!r} of {answer.id!r}: must be OPEN or CLOSED to be "
            "scored; evaluate on a dataset whose source labels its questions"
        )
    return exact_token.score_text(
        answer.prediction, answer.reference, is_open=answer.answer_type == "OPEN"
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
    counts = Counter(" ".join(exact_token.tokens_of(reference)) for reference in references)
    return min(counts, key=lambda text: (-counts[text], text), default=None)


def majority_control(answers: Iterable[Answer], majority: str) -> list[Answer]:
    """Answer every closed question with `majority`: what a model gets that reads nothing."""
    return [
        replace(answer, prediction=majority) for answer in answers if answer.answer_type == "CLOSED"
    ]
