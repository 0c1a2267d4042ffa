"""Generate the built-in data: images of phantoms with captions, dialogues and questions.

Nothing is stored. An image and its texts follow from the split, the seed and the number of the
image, each through its own random stream. So the three kinds of text describe the same images, the
splits share no image, and any number of images takes no memory.

Answers depend on the image. A yes-or-no question is drawn so that "yes" and "no" are equally
frequent for each wording, and no answer to an open question is right for more than half of the
images. So a model that ignores the image gains little.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from llavamed.data.record import AnswerType, Record
from llavamed.data.sources.phantom_images import KINDS, MODALITIES, SIDES, SIZES, Scene, Side, draw
from llavamed.errors import SampleError
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn

PhantomKind = Literal["captions", "dialogues", "questions"]
Split = Literal["train", "validation", "test"]

LICENCE = "Apache-2.0"

PHANTOMS_VERSION = 1
"""Increase it with every change to images or texts, so that datasets are prepared again."""

_Choice = TypeVar("_Choice")

_SIDES: tuple[tuple[Side, ...], ...] = ((), ("left",), ("right",), ("left", "right"))
_SIDES_CHANCE = (0.2, 0.25, 0.25, 0.3)
# Probability that a yes-or-no question about an image with a finding has the answer "yes". Images
# without a finding always have the answer "no", so "yes" is right for half of all images.
_TRUE_CHANCE = 0.5 / 0.8
# The same for questions about a side, if one side has a finding. With findings on both sides the
# answer is always "yes", without a finding "no".
_TRUE_SIDE_CHANCE = (0.5 - 0.3) / 0.5

_COUNTS = ("none", "one", "two")
_OPEN_PHRASES: dict[str, tuple[str, ...]] = {
    "modality": ("Which modality is this?", "What type of image is this?"),
    "side": ("Which side is affected?", "On which side is the finding?"),
    "count": ("How many findings are there?", "What is the number of findings?"),
    "kind": ("What kind of finding is this?", "What does the image show?"),
    "size": ("How large is the finding?", "What is the size of the finding?"),
}
_CLOSED_PHRASES: dict[str, tuple[str, ...]] = {
    "modality": ("Is this {}?", "Is this image {}?"),
    "presence": ("Is the {} side affected?", "Is there a finding on the {} side?"),
    "kind": ("Is there a {}?", "Does the image show a {}?"),
    "size": ("Is there a {} finding?", "Is the finding {}?"),
}
_CAPTION_REQUESTS = ("Describe the image.", "What is in this image?", "Write a caption.")

_PLACE_TYPES = ("side", "count", "presence")

NUM_QUESTIONS = 4
"""Number of questions about each image."""


@dataclass(frozen=True, slots=True)
class PhantomQuestion:
    """A question about one image, and its answer."""

    text: str
    answer: str
    answer_type: AnswerType
    question_type: str


class PhantomSource:
    """A `Source` of procedural phantoms that is deterministic by `seed`.

    `captions` and `dialogues` have one sample for each image, `questions` has `NUM_QUESTIONS`.
    """

    def __init__(
        self, *, kind: PhantomKind, split: Split, num_images: int, seed: int, image_size: int = 64
    ) -> None:
        if kind not in get_args(PhantomKind) or split not in get_args(Split):
            raise ValueError(f"kind={kind!r}, split={split!r}: not a kind and split of phantoms")
        self.kind = kind
        self.split = split
        self.num_images = num_images
        self.seed = seed
        self.image_size = image_size

    def count(self) -> int:
        """Return the number of samples."""
        return self.num_images * (NUM_QUESTIONS if self.kind == "questions" else 1)

    def content_hash(self) -> str:
        """Return the version of the code that draws and describes; the settings are known."""
        return f"phantoms/{PHANTOMS_VERSION}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the number of each image and, for questions, of the question."""
        for index in range(self.num_images):
            if self.kind == "questions":
                for number in range(NUM_QUESTIONS):
                    yield {"index": index, "question": number}
            else:
                yield {"index": index}

    def parse(self, row: dict[str, Any]) -> Record:
        """Describe the image of a row.

        Raises:
            SampleError: `malformed_row`.
        """
        try:
            index, number = int(row["index"]), int(row.get("question", 0))
        except (KeyError, TypeError, ValueError) as error:
            raise SampleError("malformed_row", f"{row!r} has no number of an image") from error
        scene = sample_scene(_random("scene", self.split, self.seed, index))
        random = _random(self.kind, self.split, self.seed, index)
        answer_type: AnswerType = ""
        question_type = ""
        name = f"phantom-{self.kind}-{self.split}-{self.seed}-{index}"
        if self.kind == "captions":
            turns = [(_pick(random, _CAPTION_REQUESTS), caption(scene, random))]
        else:
            # Dialogues and questions use different streams, so that the questions about an image
            # do not repeat the wording of its dialogue.
            asked = ask(scene, random)
            if self.kind == "questions":
                if not 0 <= number < len(asked):
                    raise SampleError("malformed_row", f"question {number} of {len(asked)}")
                asked = [asked[number]]
                answer_type, question_type = asked[0].answer_type, asked[0].question_type
                name = f"{name}-{number}"
            turns = [(question.text, question.answer) for question in asked]
        return Record(
            id=name,
            images=(f"phantom:{self.split}:{self.seed}:{index}",),
            turns=_as_turns(turns, image_first=bool(random.random() < 0.5)),
            domain=scene.modality,
            answer_type=answer_type,
            question_type=question_type,
            licence=LICENCE,
        )

    def load_image(self, reference: str) -> bytes:
        """Draw an image, encoded as PNG.

        Raises:
            SampleError: `missing_image`.
        """
        try:
            scheme, split, seed, index = reference.split(":")
            place = (split, int(seed), int(index))
        except ValueError as error:
            raise SampleError("missing_image", f"{reference!r} names no phantom") from error
        if scheme != "phantom" or split not in get_args(Split) or min(place[1:]) < 0:
            raise SampleError("missing_image", f"{reference!r} names no phantom")
        scene = sample_scene(_random("scene", *place))
        return draw(scene, _random("drawing", *place), self.image_size)


def sample_scene(random: np.random.Generator) -> Scene:
    """Draw a random scene."""
    return Scene(
        modality=_pick(random, MODALITIES),
        sides=_SIDES[random.choice(len(_SIDES), p=_SIDES_CHANCE)],
        kind=_pick(random, KINDS),
        size=_pick(random, SIZES),
    )


def caption(scene: Scene, random: np.random.Generator) -> str:
    """Describe all of a scene in one sentence."""
    if not scene.sides:
        return _pick(
            random,
            (
                f"{scene.modality} image without a finding.",
                f"This is {scene.modality}, no finding.",
            ),
        )
    where = "both sides" if len(scene.sides) == 2 else f"the {scene.sides[0]} side"
    what = f"a {scene.size} {scene.kind} on {where}"
    return _pick(
        random,
        (
            f"{scene.modality} image with {what}.",
            f"This is {scene.modality} and shows {what}.",
            f"There is {what}, {scene.modality} image.",
        ),
    )


def ask(scene: Scene, random: np.random.Generator) -> list[PhantomQuestion]:
    """Return one question about each property of a scene, in random order and wording.

    No two questions are about the same property: in a dialogue the earlier answer would give the
    later one away, and a model learns to copy long before it learns to see.
    """
    types = ("modality", _pick(random, _PLACE_TYPES), "kind", "size")
    return [_question(scene, types[number], random) for number in random.permutation(len(types))]


def _question(scene: Scene, question_type: str, random: np.random.Generator) -> PhantomQuestion:
    """Return an open or a closed question, with equal chances if the type has both."""
    is_open = question_type in _OPEN_PHRASES
    if is_open and question_type in _CLOSED_PHRASES:
        is_open = bool(random.random() < 0.5)
    if is_open:
        text = _pick(random, _OPEN_PHRASES[question_type])
        return PhantomQuestion(text, open_answer(scene, question_type), "OPEN", question_type)
    subject, is_true = _closed_subject(scene, question_type, random)
    text = _pick(random, _CLOSED_PHRASES[question_type]).format(subject)
    return PhantomQuestion(text, "yes" if is_true else "no", "CLOSED", question_type)


def open_answer(scene: Scene, question_type: str) -> str:
    """Return the answer to an open question; "none" if there is no finding to describe."""
    if question_type == "modality":
        return scene.modality
    if question_type == "count":
        return _COUNTS[len(scene.sides)]
    if not scene.sides:
        return "none"
    if question_type == "side":
        return "both" if len(scene.sides) == 2 else scene.sides[0]
    return scene.kind if question_type == "kind" else scene.size


def _closed_subject(
    scene: Scene, question_type: str, random: np.random.Generator
) -> tuple[str, bool]:
    """Return the subject of a yes-or-no question, and whether the image shows it."""
    if question_type == "presence":
        side = _pick(random, SIDES)
        if len(scene.sides) == 1:
            is_asked = bool(random.random() < _TRUE_SIDE_CHANCE)
            side = SIDES[SIDES.index(scene.sides[0]) ^ (not is_asked)]
        return side, side in scene.sides
    if question_type == "modality":
        asked = scene.modality
        if random.random() < 0.5:
            asked = _pick(random, tuple(name for name in MODALITIES if name != scene.modality))
        return asked, asked == scene.modality
    there, other = (
        (scene.kind, KINDS[1 - KINDS.index(scene.kind)])
        if question_type == "kind"
        else (scene.size, SIZES[1 - SIZES.index(scene.size)])
    )
    is_asked = bool(random.random() < _TRUE_CHANCE)
    return (there if is_asked else other), is_asked and bool(scene.sides)


def _as_turns(exchanges: list[tuple[str, str]], *, image_first: bool) -> tuple[Turn, ...]:
    """Return questions and answers as turns, with the image in the first."""
    turns: list[Turn] = []
    for number, (question, answer) in enumerate(exchanges):
        if number == 0:
            parts = (IMAGE_PLACEHOLDER, question) if image_first else (question, IMAGE_PLACEHOLDER)
            question = "\n".join(parts)
        turns += [Turn("user", question), Turn("assistant", answer)]
    return tuple(turns)


_PURPOSES = ("scene", "drawing", *get_args(PhantomKind))


def _random(purpose: str, split: str, seed: int, index: int) -> np.random.Generator:
    """Return the random generator of one purpose for one image."""
    key = (seed, get_args(Split).index(split), index, _PURPOSES.index(purpose))
    return np.random.default_rng(key)


def _pick(random: np.random.Generator, choices: tuple[_Choice, ...]) -> _Choice:
    """Return one of the choices with equal chances."""
    return choices[int(random.integers(len(choices)))]
