"""The rule-based part of VLMEvalKit's scoring, for comparison with tables made by it.

Source: VLMEvalKit, `dataset/utils/yorn.py`, `utils/matching_util.py` and `process_punctuation` of
its `smp`, rewritten from what they compute. Its language-model judge is not part of a rule: what it
would be asked counts as wrong, as it does there without a key for the judge. Known faults, kept on
purpose: "**yes**" is not the word yes, and the verdict "the answer is" knows the letters A to D.
"""

import re
from collections.abc import Mapping

from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.scorers.legacy import strip_punctuation

NAME = "vlmevalkit/1"

_SIGNS = re.compile(r"[.()\[\],:;!*#{}]")
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_STATED = re.compile(r"answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_LAST_WORDS = 4
"""A letter counts only among the last words of an answer."""


def score(item: Item) -> float:
    """Score one item: the option it names, its yes or no, or equality with the reference."""
    if isinstance(item.options, Mapping):
        return float(_option(item.prediction, item.options) == item.reference.strip().upper())
    wanted = item.reference.strip().lower()
    if wanted in {"yes", "no"}:
        words = set(strip_punctuation(item.prediction.lower()).split())
        return float(words & {"yes", "no"} == {wanted})
    return float(item.prediction.strip().lower() == wanted)


def _option(prediction: str, options: Mapping[str, str]) -> str | None:
    """Return the only option letter, if among the last words, else the only option text inside."""
    if any(refusal in prediction for refusal in _REFUSALS):
        return None
    words = _SIGNS.sub(" ", prediction).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - _LAST_WORDS:
        return letters[0]
    if not letters and "Z" in words:  # the kit's letter for no option
        return None
    if (stated := _STATED.search(prediction)) and stated[1].upper() in options:
        return stated[1].upper()
    if len(prediction) > 2 * sum(map(len, options.values())):
        return None
    text = prediction.lower()
    found = [letter for letter, option in options.items() if option.lower() in text]
    return found[0] if len(found) == 1 else None
