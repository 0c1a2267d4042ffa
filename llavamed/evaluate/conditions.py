"""Control conditions: what a model is shown instead of the unchanged question.

A score is believed as far as it is above those of the controls, which do not see the picture
(`blank_image`, `noise`, `shuffled`, `question_only`), not the question (`majority`), or were not
trained (`untrained`). All have the same prompt and decoding.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llavamed.errors import DataError
from llavamed.evaluate.answers import TRAINED
from llavamed.evaluate.questions import Question, QuestionImage, Questions, words_of
from llavamed.processor.image_files import Pixels

UNTRAINED, MAJORITY = "untrained", "majority"
MEAN_COLOUR = (123, 117, 104)
"""Mean red, green and blue of the images that CLIP was trained on."""


@dataclass(frozen=True)
class Condition:
    """A change to questions, and in one sentence why."""

    show: Callable[[Sequence[Question], Sequence[Question]], list[Question]]
    """Change questions; the second argument holds others, whose pictures may be borrowed."""
    about: str


def blank(pixels: Pixels) -> Pixels:
    """Return an image of the same size in one colour."""
    return np.broadcast_to(np.array(MEAN_COLOUR, dtype=np.uint8), pixels.shape).copy()


def _change(
    questions: Sequence[Question], change: Callable[[QuestionImage], QuestionImage]
) -> list[Question]:
    return [
        replace(question, pictures=tuple(map(change, question.pictures))) for question in questions
    ]


def _blank(questions: Sequence[Question], _: Sequence[Question]) -> list[Question]:
    return _change(questions, lambda picture: QuestionImage.from_pixels(blank(picture.pixels)))


def _noise(questions: Sequence[Question], _: Sequence[Question]) -> list[Question]:
    def noise(picture: QuestionImage) -> QuestionImage:
        random = np.random.default_rng(int(picture.sha256[:16], 16))
        return QuestionImage.from_pixels(
            random.integers(0, 256, size=picture.pixels.shape, dtype=np.uint8)
        )

    return _change(questions, noise)


def _question_only(questions: Sequence[Question], _: Sequence[Question]) -> list[Question]:
    return [
        replace(
            question,
            pictures=(),
            turns=tuple(replace(turn, text=words_of(turn.text)) for turn in question.turns),
        )
        for question in questions
    ]


def _shuffled(questions: Sequence[Question], others: Sequence[Question]) -> list[Question]:
    """Give each question the pictures of another item, of the same modality and organ if possible.

    Raises:
        DataError: All of these and the other questions are about the same picture.
    """
    pool = [*questions, *others]
    shown = []
    for place, question in enumerate(questions):
        # Begin after the question, so that neighbours do not all get the same picture.
        around = [*pool[place + 1 :], *pool[:place]]
        strangers = [
            other
            for other in around
            if other.image != question.image and len(other.pictures) == len(question.pictures)
        ]
        if question.pictures and not strangers:
            raise DataError(
                f"condition=shuffled: no other picture for question {question.id!r} among the "
                f"{len(pool)} questions around it; leave this control out"
            )
        alike = (
            [each for each in strangers if _kind(each) == _kind(question)],
            [each for each in strangers if each.modality == question.modality],
            strangers,
        )
        chosen = next((each[0] for each in alike if each), question)
        shown.append(replace(question, pictures=chosen.pictures))
    return shown


def _kind(question: Question) -> tuple[str, str, str]:
    return question.modality, question.organ, question.domain


CONDITIONS: Mapping[str, Condition] = {
    TRAINED: Condition(lambda questions, _: list(questions), "the question as it is"),
    "blank_image": Condition(_blank, "every picture in one colour, of the same size"),
    "noise": Condition(_noise, "random pixels instead of every picture"),
    "shuffled": Condition(
        _shuffled, "another item's picture, of the same modality and organ where there is one"
    ),
    "question_only": Condition(_question_only, "the words alone, without the picture"),
}
"""Every condition that a model answers under, by its name."""


class Majority:
    """The most frequent reference for each kind of question: what a blind model would answer.

    Kinds are the answer type, and whether there are lettered options.
    """

    def __init__(self, questions: Iterable[Question]) -> None:
        """Count references. Ties are broken alphabetically."""
        counts: dict[tuple[str, bool], Counter[str]] = {}
        for question in questions:
            counts.setdefault(self._kind(question), Counter()).update(question.references[:1])
        self.answers = {
            kind: min(each, key=lambda text: (-each[text], text)) for kind, each in counts.items()
        }

    @classmethod
    def of(cls, questions: Questions) -> "Majority":
        """Count the references of a set of questions without reading images."""
        chunks = range(questions.num_chunks)
        return cls(each for chunk in chunks for each in questions.read(chunk, with_pictures=False))

    def answer(self, question: Question) -> str:
        """Return the answer to a question; empty where no such question was counted."""
        return self.answers.get(self._kind(question), "")

    @staticmethod
    def _kind(question: Question) -> tuple[str, bool]:
        return question.answer_type, question.options is not None
