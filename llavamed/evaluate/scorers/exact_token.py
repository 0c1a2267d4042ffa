"""Token recall of open answers and equality of closed ones: the measure of LLaVA-Med's tables.

Texts are compared as whole tokens, never as substrings: a search for "no" inside the text also
finds it in "normal", "know" and "diagnosis", and so turns the best answers wrong and empty ones
right. A closed question is right or wrong; an open one has a recall between 0 and 1.

Nothing is read out of a sentence beyond its tokens: a synonym ("CXR" for "chest x-ray"), a sentence
that says yes in other words and a hedge that names both options stay unseen. Use `strict` to judge
and this rule to compare. The rules are made for languages that put spaces between words.
"""

import re
import unicodedata
from collections import Counter

from llavamed.evaluate.scorers.item import Item

NAME = "exact-token/1"
"""Name and version of these rules. Scores of two versions cannot be compared, so a change of a rule
changes the version."""

_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"}
_NUMBERS |= {"five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = frozenset({"a", "an", "the"})
_YES_NO = frozenset({"yes", "no"})
_NEGATIONS = frozenset({"neither", "no", "non", "nor", "not", "without"})
_APOSTROPHE = re.compile("['\u2019\u02bc]")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TOKEN = re.compile(r"[^\W_]+(?:(?<=\d)\.(?=\d)[^\W_]+)*")


def tokens_of(text: str) -> list[str]:
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
    side and in order. An occurrence right after a negation ("not left", "without contrast")
    says the opposite and does not count. Only that one token before is read: a wider window
    would need a grammar and would reject "No, it is on the left". The price is that a bare
    "No, left" does not count for "left", and that "left or right" counts for both.
    """
    said, wanted = tokens_of(prediction), tokens_of(reference)
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
    said, wanted = Counter(tokens_of(prediction)), Counter(tokens_of(reference))
    if not wanted:
        return float(not said)
    return (said & wanted).total() / wanted.total()


def score_text(prediction: str, reference: str, *, is_open: bool) -> float:
    """Score one prediction by the rule of its question's type, from 0 to 1."""
    if is_open:
        return open_recall(prediction, reference)
    return float(is_closed_correct(prediction, reference))


def score(item: Item) -> float:
    """Score one item by the rule of its answer type, from 0 to 1."""
    return score_text(item.prediction, item.reference, is_open=item.answer_type == "OPEN")
