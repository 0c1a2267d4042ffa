"""What an evaluation leaves behind: a results file for programs and a page for people.

Both are made in memory; the caller knows where they go. Both take the answers of every control
by its name, the model under test first ("trained", "untrained", "blank_image"), and join them by
question id, never by position. The page is one file that needs no network: thumbnails are embedded,
and its content security policy forbids any request. They cost about 15 kB a question, which is why
the number of questions shown is limited; the tables always count all of them.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from PIL import Image

from llavamed.errors import DataError
from llavamed.evaluate.vqa import (
    MEASURES,
    SCORER,
    Answer,
    Scores,
    majority_control,
    score,
    score_answer,
    score_by,
)
from llavamed.pages.environment import page_environment

THUMBNAIL_PIXELS = 384
"""Longest side of an image on the page: sharp on a dense screen, small in the file."""

_NO_SCORES = score([])

Answers: TypeAlias = Mapping[str, Sequence[Answer]]


@dataclass(frozen=True, slots=True)
class Heading:
    """What was evaluated, so that a page found alone still explains its numbers."""

    run: str
    export: str
    template: str
    dataset: str


@dataclass(frozen=True, slots=True)
class _Reply:
    """One control's answer on a card."""

    label: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class _Card:
    """One question on the page. `replies` begins with the model under test."""

    answer: Answer
    image: str
    replies: list[_Reply]


@dataclass(frozen=True, slots=True)
class _Breakdown:
    """The scores once more, a row for each value of one property, a column for each control."""

    title: str
    rows: list[tuple[str, list[Scores]]]


def render_results(answers: Answers) -> bytes:
    """Write JSON lines, one a question, with the prediction and the score of every control.

    Raises:
        DataError: The controls did not answer the same questions.
    """
    lines = []
    for replies in _join(answers):
        asked = next(iter(replies.values()))
        row = {
            "id": asked.id,
            "question": asked.question,
            "reference": asked.reference,
            "answer_type": asked.answer_type,
            "question_type": asked.question_type,
            "domain": asked.domain,
            "scorer": SCORER,
            "predictions": {control: reply.prediction for control, reply in replies.items()},
            "scores": {control: score_answer(reply) for control, reply in replies.items()},
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def render_page(
    heading: Heading, answers: Answers, *, majority: str | None = None, max_cards: int = 60
) -> str:
    """Draw the scores and a sample of the questions as one HTML page.

    Args:
        heading: What was evaluated.
        answers: The answers of each control, the model under test first.
        majority: The answer that the majority control gives to every closed question; None
            leaves that control out.
        max_cards: How many questions to show at most, spread evenly over all of them, because
            the head of a sorted dataset is no sample of it.

    Raises:
        DataError: The controls did not answer the same questions.
    """
    questions = _join(answers)
    by_control = {_label(control): replies for control, replies in answers.items()}
    if majority is not None:
        asked = next(iter(answers.values()))
        by_control[f'Always "{majority}"'] = majority_control(asked, majority)
    num_cards = min(max_cards, len(questions))
    shown = [questions[number * len(questions) // num_cards] for number in range(num_cards)]
    environment = page_environment("llavamed.evaluate")
    environment.filters["percent"] = _percent
    return environment.get_template("report.html.j2").render(
        heading=heading,
        scorer=SCORER,
        measures=MEASURES,
        scores={label: score(replies) for label, replies in by_control.items()},
        breakdowns=_break_down(by_control),
        cards=[_card(replies) for replies in shown],
        num_questions=len(questions),
    )


def _join(answers: Answers) -> list[dict[str, Answer]]:
    """Collect what every control answered, by question, in the order of the first control."""
    by_id = {
        control: {reply.id: reply for reply in replies} for control, replies in answers.items()
    }
    first, *others = by_id
    for control, replies in by_id.items():
        if len(replies) != len(answers[control]):
            raise DataError(
                f"control={control!r}: {len(answers[control])} answers to {len(replies)} "
                "questions; give every question of the dataset an id of its own"
            )
        if odd := sorted(replies.keys() ^ by_id[first].keys()):
            raise DataError(
                f"control={control!r}: answers other questions than {first!r}, {len(odd)} differ, "
                f"the first is {odd[0]!r}; generate both from the same prepared dataset"
            )
    return [{control: by_id[control][id_] for control in (first, *others)} for id_ in by_id[first]]


def _break_down(by_control: Answers) -> list[_Breakdown]:
    """Score by question type and by domain; a property that no question has gives no table."""
    breakdowns = []
    keys: tuple[Literal["question_type", "domain"], ...] = ("question_type", "domain")
    for key in keys:
        groups = [score_by(replies, key) for replies in by_control.values()]
        names = groups[0]
        if any(names):
            rows = [(name, [group.get(name, _NO_SCORES) for group in groups]) for name in names]
            breakdowns.append(_Breakdown(key.replace("_", " "), rows))
    return breakdowns


def _card(replies: Mapping[str, Answer]) -> _Card:
    asked = next(iter(replies.values()))
    return _Card(
        answer=asked,
        image=_thumbnail(asked.image) if asked.image else "",
        replies=[
            _Reply(_label(control), reply.prediction, score_answer(reply))
            for control, reply in replies.items()
        ],
    )


def _thumbnail(image: bytes) -> str:
    """Shrink an image to a data URI."""
    with Image.open(io.BytesIO(image)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    shrunk = io.BytesIO()
    picture.save(shrunk, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(shrunk.getvalue()).decode()


def _label(control: str) -> str:
    return control.replace("_", " ").capitalize()


def _percent(share: float | None) -> str:
    """Show a share with one decimal, and none as a dash: no question is not zero percent."""
    return "\u2013" if share is None else f"{100 * share:.1f}"
