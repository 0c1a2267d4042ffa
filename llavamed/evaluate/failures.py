"""Sort answers into categories of failure by the strict rules."""

from collections import Counter
from collections.abc import Iterable, Mapping

from llavamed.evaluate.answers import Answer
from llavamed.evaluate.measures import NO_ANSWER, STRICT
from llavamed.evaluate.scorers.open_answer import opposes
from llavamed.evaluate.scorers.unpack import unpack
from llavamed.evaluate.scorers.words import words_of
from llavamed.evaluate.scorers.yes_no import polarity

RIGHT = "right"
CATEGORIES: Mapping[str, str] = {
    RIGHT: "right",
    "refused": "is a refusal of the endpoint",
    "partial": "gives a part of the reference",
    "cut_off": "ends at the largest number of tokens, and is wrong",
    "empty": "is empty",
    "no_choice": "makes no choice",
    "yes_for_no": "says yes where the reference says no",
    "no_for_yes": "says no where the reference says yes",
    "other_option": "chooses another option",
    "opposite": "names another side, level or property",
    "other": "says something else",
}
"""Description of every category, in the order in which they are tested."""


def categorize(answer: Answer, values: Mapping[str, float]) -> str:
    """Return the category of an answer.

    Args:
        values: Its values by measure.
    """
    score, reference = values[STRICT], answer.references[0]
    if score >= 1:
        return RIGHT
    if answer.outcome == "refused":
        return "refused"
    if score > 0:
        return "partial"
    if answer.outcome == "cut_off":
        return "cut_off"
    if not answer.prediction.strip():
        return "empty"
    if answer.answer_type == "CLOSED" and values[NO_ANSWER] == 1:
        return "no_choice"
    if isinstance(answer.options, Mapping):
        return "other_option"
    wanted = polarity(reference)
    if wanted is not None:
        return "no_for_yes" if wanted else "yes_for_no"
    if opposes(words_of(unpack(answer.prediction, answer.question)), words_of(reference)):
        return "opposite"
    return "other"


def count_failures(categories: Iterable[str]) -> dict[str, int]:
    """Count answers by category, in the order of `CATEGORIES`, without empty categories."""
    counts = Counter(categories)
    return {category: counts[category] for category in CATEGORIES if counts[category]}
