"""The rule-based part of VLMEvalKit's scoring, for comparison with tables made by it.

Source: VLMEvalKit, `dataset/utils/yorn.py` and `utils/matching_util.py`, rewritten from what they
compute. Its language-model judge is not part of a rule: what it would be asked counts as wrong, as
it does there without a key for the judge.
"""

import re
from collections.abc import Mapping

from llavamed.evaluate.scorers.item import Item

NAME = "vlmevalkit/1"

_SIGNS = re.compile(r"[.()\[\],:;!*#{}\"']")
_LAST_WORDS = 5


def score(item: Item) -> float:
    """Score one item: the option it names, its yes or no, or equality with the reference."""
    if isinstance(item.options, Mapping):
        return float(_option(item.prediction, item.options) == item.reference.strip().upper())
    wanted = item.reference.strip().lower()
    if wanted in {"yes", "no"}:
        words = set(_SIGNS.sub(" ", item.prediction.lower()).split())
        said = words & {"yes", "no"}
        return float(said == {wanted})
    return float(item.prediction.strip().lower() == wanted)


def _option(prediction: str, options: Mapping[str, str]) -> str | None:
    """Return the only option letter among the last words, else the only option text inside."""
    words = _SIGNS.sub(" ", prediction).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and letters[0] in words[-_LAST_WORDS:]:
        return letters[0]
    text = prediction.lower()
    found = [letter for letter, words_ in options.items() if words_.lower() in text]
    return found[0] if len(found) == 1 else None
